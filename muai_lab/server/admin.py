"""The admin call: look at and change batcher, cache and tuner of a running stack.

It exists only where the process was given a token, answers only to this machine, and only to who knows the token.
"""

from __future__ import annotations

import hmac
import ipaddress
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import orjson
from starlette.types import Receive, Scope, Send

from muai_lab.errors import SettingsError
from muai_lab.server.body import read_body
from muai_lab.server.exchange import send_json
from muai_lab.server.host import ModelHost
from muai_lab.server.http_error import HttpError, invalid, shown
from muai_lab.settings.live import live_view
from muai_lab.stack.stack import InferenceStack

TOKEN_VARIABLE = "MUAI_ADMIN_TOKEN"
PATH = "/admin/optimization"

_MAX_BODY_BYTES = 64 * 1024


class AdminEndpoint:
    """`GET` shows the sections that can be changed while serving, `PATCH` changes them, whole or not at all."""

    def __init__(self, host: ModelHost, token: str) -> None:
        self._host = host
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; raises HttpError."""
        self._check_allowed(scope)
        if scope["method"] == "PATCH":
            document = _document(await read_body(scope, receive, _MAX_BODY_BYTES))
            name, stack = await self._stack(document.get("model"))
            try:
                await stack.reconfigure(document["optimization"])
            except SettingsError as error:
                raise invalid(str(error), "optimization", "invalid_settings") from error
        else:
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("model", [None])[0]
            name, stack = await self._stack(asked)
        answer = {"model": name, "optimization": live_view(stack.optimization)}
        await send_json(send, orjson.dumps(answer))

    def _check_allowed(self, scope: Scope) -> None:
        client = scope.get("client")
        if client is None or not ipaddress.ip_address(client[0]).is_loopback:
            message = "the admin call answers only to the machine that it runs on"
            raise HttpError(HTTPStatus.FORBIDDEN, message, kind="permission_error", code="not_local")
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            message = f"the header Authorization: Bearer … must hold the token that the server got as {TOKEN_VARIABLE}"
            raise HttpError(HTTPStatus.UNAUTHORIZED, message, kind="authentication_error", code="invalid_token")

    async def _stack(self, name: object) -> tuple[str, InferenceStack]:
        """The stack meant: the named one, or the only one there is."""
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
