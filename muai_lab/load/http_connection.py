"""One client connection over HTTP/1.1: the path of every measured byte.

A general HTTP library stamps a chunk when the reading task is woken, one or more rounds of the event loop after the
bytes came. It spends most of its time on what a stream of tokens does not need. Here bytes are stamped in the callback
in which they arrive and are passed on from there; the task is woken once, at the end of the response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

import httptools

from muai_lab.load.own_limits import exhausted_by

# Servers send a few hundred bytes of headers; endless ones must not fill the client's memory.
_HEAD_BYTES = 256 << 10


class ConnectionProblem(Exception):
    """There is no answer, or only a part of one; str() gives the reason for a reader of the results."""


class Unanswered(ConnectionProblem):
    """The server closed the connection before the first byte of an answer."""


class Unreachable(ConnectionProblem):
    """No connection could be made to any address of the server."""


class ResponseSink(Protocol):
    """Receives one response as it arrives. An exception of a method ends the exchange with that error."""

    def connected(self, took_ns: int) -> None:
        """Record that a new connection was made for this request."""

    def sent(self, at_ns: int) -> None:
        """Record that the request is about to be written; called again if it is sent a second time."""

    def head(self, status: int, content_type: str, location: str) -> None:
        """Receive the status and the headers; a header that the server does not send is `""`."""

    def body(self, data: bytes, at_ns: int) -> None:
        """Receive a piece of the body, without HTTP's own framing; at_ns: time of the read."""

    def end(self, at_ns: int) -> None:
        """Record that the response is complete."""


class HttpConnection(asyncio.Protocol):
    """A connection for one exchange at a time, kept alive between them."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.idle_since_ns = 0
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # of the parser; bound once, since it is called for every chunk
        self._parser: Any = None
        self._answer: ResponseSink | None = None
        self._done: asyncio.Future[None] | None = None
        self._bytes_came = False
        self._head_bytes = 0  # read before the headers were complete
        self._head: tuple[int, str, str] | None = None  # read, and not handed on yet
        self._content_type = self._location = self._encoding = ""
        self._framed = False  # the headers say where the body ends; otherwise the end of the connection does
        self._started = False  # the head of the final response was read
        self._complete = False
        self._keep_alive = False

    @property
    def usable(self) -> bool:
        """True if the connection can take another request."""
        return self._transport is not None and not self._transport.is_closing()

    def exchange(self, request: bytes, answer: ResponseSink) -> asyncio.Future[None]:
        """Write a request.

        A caller that cancels the future must close the connection: the rest of the response would corrupt the next.

        Returns:
            A future that is done when the response is complete, or raises ConnectionProblem or an error of `answer`.
        """
        assert self._transport is not None, "the connection is open"
        assert self._done is None, "one exchange at a time"
        self._done = done = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._parser = httptools.HttpResponseParser(self)
        self._pieces.clear()
        self._head, self._content_type, self._location, self._encoding = None, "", "", ""
        self._bytes_came = self._framed = self._started = self._complete = self._keep_alive = False
        self._head_bytes = 0
        answer.sent(self._clock())
        self._transport.write(request)
        return done

    def close(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # Calls of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports do not inherit from asyncio's

    def data_received(self, data: bytes) -> None:
        at_ns = self._clock()
        if self._done is None:
            self.close()  # bytes without a request: no further answer on this connection can be trusted
            return
        self._bytes_came = True
        if not self._started:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self._fail(ConnectionProblem(f"the headers of the answer are longer than {_HEAD_BYTES >> 10} KiB"))
                return
        try:
            try:
                self._parser.feed_data(data)
            finally:
                self._hand_on(at_ns)  # bytes before a fault count
            if self._complete:
                self._end(at_ns)
        except httptools.HttpParserError as error:
            self._fail(ConnectionProblem(f"not an HTTP answer: {error}"))
        except Exception as error:  # noqa: BLE001 (it belongs to the task that waits for this answer)
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._done is None:
            return
        if self._started and not self._framed and exc is None:
            try:
                self._end(self._clock())
            except Exception as error:  # noqa: BLE001 (as above)
                self._fail(error)
        elif self._bytes_came:
            self._fail(ConnectionProblem("the connection broke off in the middle of the answer"))
        elif isinstance(exc, ConnectionError):
            self._fail(Unanswered("the server reset the connection without an answer"))
        elif isinstance(exc, OSError) and (exhausted := exhausted_by(exc, 1)) is not None:
            self._fail(exhausted)
        else:
            self._fail(Unanswered("the server closed the connection without an answer"))

    # Calls of the parser, besides `on_body`

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-type":
                self._content_type = value.decode("latin-1")
            case b"content-encoding":
                self._encoding = value.decode("latin-1")
            case b"location":
                self._location = value.decode("latin-1")
            case b"content-length" | b"transfer-encoding":
                self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # below: an interim response, the final one follows
            self._started = True
            self._head = (status, self._content_type, self._location)

    def on_message_complete(self) -> None:
        if self._started:
            self._complete = True
            # Asked here, since the parser forgets the headers with the message.
            self._keep_alive = self._framed and self._parser.should_keep_alive()

    def _hand_on(self, at_ns: int) -> None:
        """Pass the bytes of one read to the answer: one call, for any number of HTTP chunks."""
        answer, pieces = self._answer, self._pieces
        assert answer is not None
        if self._head is not None:
            head, self._head = self._head, None
            answer.head(*head)
            if self._encoding.lower() not in ("", "identity"):
                raise ConnectionProblem(
                    f"HTTP {head[0]}: the answer is compressed ({self._encoding[:20]}) although the request "
                    "forbids it, and compression hides when tokens arrive; switch it off in the server or proxy"
                )
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            answer.body(data, at_ns)

    def _end(self, at_ns: int) -> None:
        assert self._answer is not None
        self._answer.end(at_ns)
        if not self._keep_alive:
            self.close()
        self._finish(None)

    def _fail(self, error: Exception) -> None:
        self.close()
        self._finish(error)

    def _finish(self, error: Exception | None) -> None:
        done, self._done, self._answer = self._done, None, None
        if done is None or done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
