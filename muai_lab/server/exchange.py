"""One HTTP exchange on bare ASGI: reading a bounded body, answering with JSON, noticing that the client has gone."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Protocol

from starlette.types import Receive, Scope, Send

from muai_lab.server.http_error import Headers, HttpError, shown

MAX_BODY_BYTES = 16 * 1024 * 1024


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


class Cancellable(Protocol):
    """Work that stops when nobody waits for it any more."""

    def cancel(self) -> None:
        """Stop; harmless when it has ended."""


def check_json(scope: Scope) -> None:
    """Refuse a body that is not said to be JSON.

    A web page of another origin may send text or forms anywhere without asking first, but not JSON; so JSON in disguise
    is refused. A request without a content type is JSON, unless a browser sends it (they add `Origin`).

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


async def read_body(scope: Scope, receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
    """The whole body of the request, at most `limit` bytes.

    Raises:
        HttpError: (413) it is longer.
        ClientGone: the client went away before the body was complete.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:  # the HTTP parser has checked that it is a number
            raise _too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False) and message["type"] == "http.request" and len(body) <= limit:
        return body
    parts = [body]
    size = len(body)
    while message["type"] == "http.request" and size <= limit and message.get("more_body", False):
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
    if size > limit:
        raise _too_large(limit)
    if message["type"] != "http.request":
        raise ClientGone
    return b"".join(parts)


def _too_large(limit: int) -> HttpError:
    message = f"the body is larger than {limit} bytes"
    return HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, code="body_too_large", close=True)


async def send_json(send: Send, body: bytes, *, status: int = HTTPStatus.OK, headers: Headers | None = None) -> None:
    """A whole answer with a JSON document."""
    head: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *(headers or [])]
    await send({"type": "http.response.start", "status": int(status), "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: HttpError) -> None:
    """A whole answer that says what went wrong."""
    await send_json(send, error.body(), status=error.status, headers=error.headers())


class Disconnect:
    """Watches for the client to go away, and stops the work that is done for it.

    One task per exchange: it waits on `receive()`, which returns nothing more once the body has been read, except that
    the client has gone (or that the answer is complete, when there is nothing left to stop).
    """

    def __init__(self, receive: Receive, work: Iterable[Cancellable]) -> None:
        self.gone = False
        self._receive = receive
        self._work = tuple(work)

    async def watch(self) -> None:
        """Return when the client has gone, its work stopped."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        for item in self._work:
            item.cancel()
