"""One HTTP exchange: the check for JSON, responses in JSON, and the detection of a client that has gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from muai_lab.server.http_error import HttpError, shown


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


class Cancellable(Protocol):
    """Work that can be cancelled when its client has gone."""

    def cancel(self) -> None:
        """Stop; harmless after the end of the work."""


def check_json(scope: Scope) -> None:
    """Refuse a body of another type than JSON.

    A web page of another origin can send text and forms to any address without a preflight request, but not JSON.
    A request without a content type counts as JSON, unless it comes from a browser (browsers add `Origin`).

    Raises:
        HttpError: (415) the content type is another one.
    """
    headers = dict(scope["headers"])
    given = headers.get(b"content-type")
    media_type = (given or b"").split(b";")[0].strip().lower()
    if media_type == b"application/json" or (media_type.startswith(b"application/") and media_type.endswith(b"+json")):
        return
    if given is None and b"origin" not in headers:
        return
    message = "the body must be JSON, sent with the header 'Content-Type: application/json'"
    if given is not None:
        message += f", not {shown(given.decode('latin-1'))}"
    raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, code="unsupported_media_type")


def json_response(
    content: Mapping[str, Any] | bytes, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with a JSON document; content: the document, or its UTF-8 form."""
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return Response(body, status, headers, media_type="application/json")


def error_response(error: HttpError) -> Response:
    """Return the response that reports the error."""
    return json_response(error.document(), error.status, error.headers)


class NoResponse(Response):
    """The response to a client that has gone: nothing is sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send nothing."""


class Disconnect:
    """Detects that the client has gone, and cancels the work for it.

    One task per exchange waits on `receive()`. After the whole body, that call returns only when the client has gone,
    or when the answer is complete and no work is left to cancel.
    """

    def __init__(self, receive: Receive, work: Iterable[Cancellable]) -> None:
        self.gone = False
        self._receive = receive
        self._work = tuple(work)

    async def watch(self) -> None:
        """Wait until the client has gone, then cancel its work."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        for item in self._work:
            item.cancel()
