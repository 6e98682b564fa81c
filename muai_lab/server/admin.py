"""The admin call: show and change batcher, cache and tuner of a running stack.

It exists only if the process was started with a token, and answers only to this machine and to that token.
"""

from __future__ import annotations

import hmac
import ipaddress
from http import HTTPStatus
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from muai_lab.errors import SettingsError
from muai_lab.server.admin_call import TOKEN_VARIABLE
from muai_lab.server.body import read_body
from muai_lab.server.exchange import json_response
from muai_lab.server.host import ModelHost
from muai_lab.server.http_error import HttpError, invalid, shown
from muai_lab.settings.live import live_view
from muai_lab.stack.stack import InferenceStack

_MAX_BODY_BYTES = 64 * 1024


class AdminEndpoint:
    """`GET` shows the sections that can be changed while serving, `PATCH` changes them, whole or not at all."""

    def __init__(self, host: ModelHost, token: str) -> None:
        self._host = host
        self._token = token.encode()

    async def answer(self, request: Request) -> Response:
        """Answer one request.

        Raises:
            HttpError: The client may not ask (401, 403), or the request is wrong (400, 404).
        """
        self._check_allowed(request)
        if request.method == "PATCH":
            document = _document(await read_body(request.scope, request.receive, _MAX_BODY_BYTES))
            name, stack = await self._stack(document.get("model"))
            try:
                await stack.reconfigure(document["optimization"])
            except SettingsError as error:
                raise invalid(str(error), "optimization", "invalid_settings") from error
        else:
            name, stack = await self._stack(request.query_params.get("model") or None)
        return json_response({"model": name, "optimization": live_view(stack.optimization)})

    def _check_allowed(self, request: Request) -> None:
        if request.client is None or not ipaddress.ip_address(request.client.host).is_loopback:
            message = "the admin call answers only to the machine that it runs on"
            raise HttpError(HTTPStatus.FORBIDDEN, message, kind="permission_error", code="not_local")
        given = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            message = f"the header Authorization: Bearer … must hold the token that the server got as {TOKEN_VARIABLE}"
            raise HttpError(HTTPStatus.UNAUTHORIZED, message, kind="authentication_error", code="invalid_token")

    async def _stack(self, name: object) -> tuple[str, InferenceStack]:
        """Return the named stack, or the only one if there is no name."""
        loaded = list(self._host.stacks)
        if name is None and len(loaded) == 1:
            name = loaded[0]
        if not isinstance(name, str):
            raise invalid(f"name the model: {', '.join(loaded) or 'none is loaded'}", "model")
        return name, await self._host.stack(name)


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("optimization"), dict):
        raise invalid(
            'the body must be {"model": NAME, "optimization": {"batcher": {…}, "cache": {…}, "tuner": {…}}}',
            "optimization",
        )
    unknown = sorted(document.keys() - {"model", "optimization"})
    if unknown:
        raise invalid(f"unknown field {shown(unknown[0])}: there are model and optimization", shown(unknown[0]))
    return document
