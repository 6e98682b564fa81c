"""The HTTP application: its routes, the health checks, and the responses to errors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from muai_lab.errors import MuaiError
from muai_lab.server.admin import AdminEndpoint
from muai_lab.server.admin_call import ADMIN_PATH
from muai_lab.server.description import describe_model
from muai_lab.server.exchange import ClientGone, NoResponse, error_response, json_response
from muai_lab.server.frames import CHAT, COMPLETION
from muai_lab.server.generation import GenerationEndpoint
from muai_lab.server.host import LOADING_RETRY_S, ModelHost, State
from muai_lab.server.http_error import HttpError, http_error_of, internal_error, retry_after, shown
from muai_lab.server.protocol import ChatRequest, CompletionRequest
from muai_lab.server.reading import RequestReader
from muai_lab.settings.monitoring import ServerSettings

log = logging.getLogger(__name__)


def create_app(
    host: ModelHost, reader: RequestReader, settings: ServerSettings, created: int, *, admin_token: str | None = None
) -> ASGIApp:
    """Return the OpenAI API and the health checks over `host`.

    Args:
        host: The models.
        reader: Reads the requests; the caller closes it.
        settings: Timeouts and paths.
        created: Unix time, in seconds, that `/v1/models` shows.
        admin_token: Token of the admin call; None for no admin call.
    """
    timeout_s = settings.request_timeout_s
    generating: dict[str, ASGIApp] = {
        "/v1/completions": GenerationEndpoint(host, reader, CompletionRequest, COMPLETION, timeout_s),
        "/v1/chat/completions": GenerationEndpoint(host, reader, ChatRequest, CHAT, timeout_s),
    }
    status = _Status(host, created)
    routes = [
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in generating.items()),
        Route("/v1/models", status.models),
        Route("/v1/models/{model:path}", status.model),
        Route(settings.health_check_path, status.health),
        Route(settings.readiness_check_path, status.ready),
    ]
    if admin_token is not None:
        routes.append(Route(ADMIN_PATH, AdminEndpoint(host, admin_token).answer, methods=["GET", "PATCH"]))
    app = Starlette(
        routes=routes,
        # Not among `exception_handlers`: a handler of `Exception` there raises the error again after the response,
        # and uvicorn then logs it a second time and closes the connection.
        middleware=[Middleware(ExceptionMiddleware, handlers={Exception: _answer_error})],
        exception_handlers={HTTPException: _answer_error},
    )
    app.router.redirect_slashes = False
    return _Application(generating, app)


class _Application:
    """Passes requests for output directly to their endpoints, and all others to Starlette.

    A stream sends an event per token, and Starlette's layers would make each more expensive than its rendering
    (docs/server-results.md).
    """

    def __init__(self, generating: Mapping[str, ASGIApp], others: ASGIApp) -> None:
        self._generating = generating
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._generating.get(scope["path"]) if scope["method"] == "POST" else None
        if endpoint is None:
            await self._others(scope, receive, send)
            return
        try:
            await endpoint(scope, receive, send)
        except Exception as error:  # noqa: BLE001 (it is answered, and logged if it is a fault of the server)
            response = await _answer_error(Request(scope), error)
            await response(scope, receive, send)


class _Status:
    """The routes that describe the server itself."""

    def __init__(self, host: ModelHost, created: int) -> None:
        self._host = host
        self._created = created

    async def models(self, _: Request) -> Response:
        data = [self._entry(name) for name in self._host.names]
        return json_response({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        self._host.check_known(name)
        return json_response(self._entry(name))

    def _entry(self, name: str) -> dict[str, Any]:
        stack = self._host.stacks.get(name)
        entry: dict[str, Any] = {"id": name, "object": "model", "created": self._created, "owned_by": "muai"}
        entry["loaded"] = stack is not None
        if stack is not None:
            entry["max_model_len"] = stack.info.engine.max_model_len
            entry["engine"] = stack.info.engine.name
            entry["serving"] = describe_model(name, stack)
        return entry

    async def health(self, _: Request) -> Response:
        """Answer 200 while the process lives and every loaded engine works, else 503."""
        if failed := self._failed_engines():
            return _unavailable("unhealthy", failed)
        return json_response({"status": "ok", "state": self._host.state.value})

    async def ready(self, _: Request) -> Response:
        """Answer 200 while the server accepts requests, else 503 with the reason."""
        if self._host.state is State.LOADING:
            return _unavailable("loading", "the server is still loading its models")
        if self._host.state is State.DRAINING:
            return _unavailable("draining", "the server is shutting down")
        if failed := self._failed_engines():
            return _unavailable("unhealthy", failed)
        return json_response({"status": "ready", "models": list(self._host.stacks)})

    def _failed_engines(self) -> str | None:
        unhealthy = self._host.unhealthy()
        return f"the engine of {', '.join(unhealthy)} has failed" if unhealthy else None


def _unavailable(status: str, reason: str) -> Response:
    document = {"status": status, "reason": reason}
    return json_response(document, HTTPStatus.SERVICE_UNAVAILABLE, retry_after(LOADING_RETRY_S))


async def _answer_error(request: Request, error: Exception) -> Response:
    """Return the response to an error that a route raised before it sent anything."""
    match error:
        case ClientGone():
            return NoResponse()
        case HttpError():
            return error_response(error)
        case MuaiError():
            return error_response(http_error_of(error))
        case HTTPException():
            return error_response(_routing_error(request, error))
    log.error("%s %s failed", request.method, shown(request.scope["path"]), exc_info=error)
    return error_response(internal_error())


def _routing_error(request: Request, error: HTTPException) -> HttpError:
    """Return Starlette's 404 or 405 in OpenAI's error shape."""
    path = shown(request.scope["path"])
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allow = ", ".join(sorted((error.headers or {})["Allow"].split(", ")))
        return HttpError(
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"{path} does not know the method {request.method}; it takes {allow}",
            code="method_not_allowed",
            headers={"allow": allow},
        )
    return HttpError(
        HTTPStatus.NOT_FOUND,
        f"there is nothing at {path}; the API is under /v1 (/v1/models, /v1/completions, /v1/chat/completions)",
        code="unknown_url",
    )
