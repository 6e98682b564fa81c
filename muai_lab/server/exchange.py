"""One HTTP exchange on bare ASGI: is it JSON, answering with JSON, noticing that the client has gone."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Protocol

from starlette.types import Receive, Scope, Send

from muai_lab.server.http_error import Headers, HttpError, shown


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
