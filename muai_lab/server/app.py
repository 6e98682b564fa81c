"""The HTTP application: routes, health, and what becomes of errors."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import orjson
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from muai_lab.errors import MuaiError
from muai_lab.server import admin
from muai_lab.server.description import describe_model
from muai_lab.server.exchange import ClientGone, send_error, send_json
from muai_lab.server.frames import CHAT, COMPLETION
from muai_lab.server.generation import GenerationEndpoint
from muai_lab.server.host import LOADING_RETRY_S, ModelHost, State
from muai_lab.server.http_error import HttpError, http_error_of, internal_error, shown
from muai_lab.server.protocol import ChatRequest, CompletionRequest
from muai_lab.server.reading import RequestReader
from muai_lab.settings.monitoring import ServerSettings

log = logging.getLogger(__name__)

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


def create_app(
    host: ModelHost, reader: RequestReader, settings: ServerSettings, created: int, *, admin_token: str | None = None
) -> ASGIApp:
    """The OpenAI API and the health checks over `host`.

    reader: of the requests; the caller closes it. created: Unix time that `/v1/models` shows. admin_token: offer the
    admin call to who knows it; None: not at all.
    """
    timeout_s = settings.request_timeout_s
    completions = GenerationEndpoint(host, reader, CompletionRequest, COMPLETION, timeout_s)
    chat = GenerationEndpoint(host, reader, ChatRequest, CHAT, timeout_s)
    status = _Status(host, created)
    routes = [
        Route("/v1/completions", _on("POST", completions)),
        Route("/v1/chat/completions", _on("POST", chat)),
        Route("/v1/models", _on("GET", status.models)),
        Route("/v1/models/{model:path}", _on("GET", status.model)),
        Route(settings.health_check_path, _on("GET", status.health)),
        Route(settings.readiness_check_path, _on("GET", status.ready)),
    ]
    if admin_token is not None:
        routes.append(Route(admin.PATH, _MethodGuard(("GET", "PATCH"), admin.AdminEndpoint(host, admin_token))))
    return _answer_errors(Router(routes, redirect_slashes=False, default=_unknown_route))


def _on(method: str, handler: Handler) -> Handler:
    """An ASGI application for one method (and HEAD beside GET); 405 for the others."""
    return _MethodGuard(("GET", "HEAD") if method == "GET" else (method,), handler)


class _MethodGuard:
    """A class, since Starlette takes a plain function for a handler of its own request objects."""

    def __init__(self, methods: tuple[str, ...], handler: Handler) -> None:
        self._methods = methods
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in self._methods:
            allow = ", ".join(self._methods)
            raise HttpError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{shown(scope['path'])} does not know the method {scope['method']}; it takes {allow}",
                code="method_not_allowed",
                allow=allow,
            )
        await self._handler(scope, receive, send)


class _Status:
    """What the server says about itself."""

    def __init__(self, host: ModelHost, created: int) -> None:
        self._host = host
        self._created = created

    async def models(self, scope: Scope, receive: Receive, send: Send) -> None:
        data = [self._entry(name) for name in self._host.names]
        await send_json(send, orjson.dumps({"object": "list", "data": data}))

    async def model(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["model"]
        self._host.check_known(name)
        await send_json(send, orjson.dumps(self._entry(name)))

    def _entry(self, name: str) -> dict[str, Any]:
        stack = self._host.stacks.get(name)
        entry: dict[str, Any] = {"id": name, "object": "model", "created": self._created, "owned_by": "muai"}
        entry["loaded"] = stack is not None
        if stack is not None:
            entry["max_model_len"] = stack.info.engine.max_model_len
            entry["engine"] = stack.info.engine.name
            entry["serving"] = describe_model(name, stack)
        return entry

    async def health(self, scope: Scope, receive: Receive, send: Send) -> None:
        """200 while the process lives and every loaded engine works; else 503."""
        unhealthy = self._host.unhealthy()
        if unhealthy:
            await self._unavailable(send, "unhealthy", f"the engine of {', '.join(unhealthy)} has failed")
        else:
            await send_json(send, orjson.dumps({"status": "ok", "state": self._host.state.value}))

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        """200 when requests are welcome; else 503 with the reason."""
        unhealthy = self._host.unhealthy()
        if self._host.state is State.LOADING:
            await self._unavailable(send, "loading", "the server is still loading its models")
        elif self._host.state is State.DRAINING:
            await self._unavailable(send, "draining", "the server is shutting down")
        elif unhealthy:
            await self._unavailable(send, "unhealthy", f"the engine of {', '.join(unhealthy)} has failed")
        else:
            await send_json(send, orjson.dumps({"status": "ready", "models": list(self._host.stacks)}))

    async def _unavailable(self, send: Send, status: str, reason: str) -> None:
        await send_json(
            send,
            orjson.dumps({"status": status, "reason": reason}),
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            headers=[(b"retry-after", b"%d" % LOADING_RETRY_S)],
        )


async def _unknown_route(scope: Scope, receive: Receive, send: Send) -> None:
    raise HttpError(
        HTTPStatus.NOT_FOUND,
        f"there is nothing at {shown(scope['path'])}; the API is under /v1 (/v1/models, /v1/completions, "
        "/v1/chat/completions)",
        code="unknown_url",
    )


def _answer_errors(app: ASGIApp) -> ASGIApp:
    """Turn what `app` raises into an answer; a fault of ours is logged in full, and told short.

    Handlers raise only while nothing of their answer has been sent: a stream tells of its failures itself.
    """

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            await app(scope, receive, send)
        except ClientGone:
            return
        except HttpError as error:
            await send_error(send, error)
        except MuaiError as error:
            await send_error(send, http_error_of(error))
        except Exception:
            log.exception("%s %s failed", scope["method"], shown(scope["path"]))
            await send_error(send, internal_error())

    return answering
