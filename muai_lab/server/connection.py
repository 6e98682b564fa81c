"""One HTTP/1.1 connection: uvicorn's protocol, with limits on the size and the duration of a request.

Differences from uvicorn's `HttpToolsProtocol`:

- The head of a request, its number of headers, its target, and the framing of a chunked body are limited.
- Input is parsed in slices, with a turn of the event loop between them, so no client blocks the loop for long.
- A client that is too slow, in the head, in the body or in reading its answer, loses its connection.
- `Upgrade` is ignored and the request served (RFC 9110, 7.8).
- HTTP/1.0 clients get no chunks: without a length, the end of the connection ends the answer.
- Errors of the protocol are answered in OpenAI's shape, and never inside another answer.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from muai_lab.server.http10 import without_chunks
from muai_lab.server.http_error import HttpError, invalid, unavailable
from muai_lab.server.transport import AnswerTransport, BacklogFlow

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
MAX_TARGET_BYTES = 16 * 1024
MAX_PIPELINED = 32
MIN_BODY_BYTES_PER_S = 4096  # a body may take the timeout, and a second for each 4 KiB
SLICE_BYTES = 16 * 1024
CHUNK_OVERHEAD = 8  # bytes around each byte of a chunked body: "1\r\na\r\n" has 5
LATE_BODY_BYTES = 1024 * 1024  # of a request that is answered already: read and dropped, then the connection ends
LINGER_S = 2.0
LINGER_BYTES = 64 * 1024 * 1024
KEEP_ALIVE_S = 75


class ConnectionConfig(uvicorn.Config):
    """uvicorn's configuration, with the limits of a connection that the user sets.

    Attributes:
        client_timeout_s: Longest time, in seconds, for sending a head, for a pause in a body, and for leaving an answer
            unread.
        max_connections: Most connections that are open at once.
    """

    def __init__(self, app: ASGIApp, *, client_timeout_s: float, max_connections: int, **more: Any) -> None:
        super().__init__(app, http=Connection, **more)
        self.client_timeout_s = client_timeout_s
        self.max_connections = max_connections


class _Phase(enum.Enum):
    """The part of a request that a connection waits for."""

    IDLE = "idle"  # between two requests, or before the first
    HEAD = "head"
    BODY = "body"
    ENDING = "ending"  # input is discarded; running requests are answered, then the connection ends


class Connection(HttpToolsProtocol):
    """One connection of a client; see the module's description."""

    config: ConnectionConfig
    flow: BacklogFlow
    _answers: AnswerTransport

    def __init__(
        self,
        config: ConnectionConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._phase = _Phase.IDLE
        self._phase_since = 0.0  # monotonic seconds of the loop, as all times here
        self._write_paused_at: float | None = None
        self._closing_since: float | None = None
        self._refusal: HttpError | None = None
        self._feeding = False  # a turn of the loop is scheduled for the backlog
        self._upgrade_method: bytes | None = None
        self._received = 0  # bytes of the present request so far, approximately
        self._head_bytes = 0
        self._body_bytes = 0
        self._late_bytes = 0

    # The transport's events

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = BacklogFlow(transport)
        self._answers = AnswerTransport(transport, self._finish)
        self._enter(_Phase.IDLE)
        if len(self.connections) > self.config.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.flow.backlog.clear()
        self._answers.forget()

    def data_received(self, data: bytes) -> None:
        if self._phase is _Phase.ENDING:
            self._late_bytes += len(data)
            if self._late_bytes > LINGER_BYTES:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        if self._phase is _Phase.IDLE:
            self._enter(_Phase.HEAD)
        if not self.flow.backlog and len(data) <= SLICE_BYTES:
            self._feed(data)
            return
        self.flow.backlog += data
        self.flow.pause_reading()
        self._schedule_feeding()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_paused_at = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_paused_at = None

    def end_if_overdue(self, now: float) -> None:
        """Close the connection if its client is too slow; called about once a second with the loop's time."""
        timeout_s, waited_s = self.config.client_timeout_s, now - self._phase_since
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
            if now - self._closing_since > timeout_s:
                self.transport.abort()
        elif self._write_paused_at is not None and now - self._write_paused_at > timeout_s:
            log.info("a client did not read its answer for %.0f s: closed", timeout_s)
            self.transport.abort()
        elif self._phase is _Phase.ENDING:
            if waited_s > LINGER_S and not self._answering:
                self.transport.close()
        elif self._phase is _Phase.IDLE:
            if waited_s > KEEP_ALIVE_S and not self._answering:
                self.transport.close()
        elif self.flow.read_paused:
            self._phase_since = now - min(waited_s, timeout_s)  # reading is paused: the wait is not the client's
        elif self._phase is _Phase.HEAD and waited_s > timeout_s:
            self._refuse(_too_slow("the head of the request"))
        elif self._phase is _Phase.BODY and waited_s > timeout_s + self._body_bytes / MIN_BODY_BYTES_PER_S:
            self._refuse(_too_slow("the body of the request"))

    # The parser's events

    def on_message_begin(self) -> None:
        self._received = self._head_bytes = self._body_bytes = self._late_bytes = 0
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop_parsing(invalid(f"more than {MAX_PIPELINED} requests were sent before they were answered"))
        super().on_message_begin()
        if self._phase is not _Phase.HEAD:
            self._enter(_Phase.HEAD)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            message = f"the address is longer than {MAX_TARGET_BYTES} bytes"
            self._stop_parsing(HttpError(HTTPStatus.REQUEST_URI_TOO_LONG, message, code="address_too_long"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            self._stop_parsing(_head_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            self._upgrade_method = self.parser.get_method()
            return
        super().on_headers_complete()
        self.cycle.transport = self._answers
        self._enter(_Phase.BODY)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self.cycle.response_complete:
            self._late_bytes += len(body)
            if self._late_bytes > LATE_BODY_BYTES:
                self._stop_parsing(invalid("the request was answered before its end"))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade_method is not None:
            return
        super().on_message_complete()
        self._enter(_Phase.IDLE)

    # Feeding the parser

    def _schedule_feeding(self) -> None:
        if not self._feeding:
            self._feeding = True
            self.loop.call_soon(self._feed_backlog)

    def _feed_backlog(self) -> None:
        """Parse one slice of the backlog, and schedule another turn for the rest."""
        self._feeding = False
        backlog = self.flow.backlog
        if self.transport.is_closing() or self.pipeline:
            return  # on_response_complete continues with it
        if backlog:
            data = bytes(backlog[:SLICE_BYTES])
            del backlog[:SLICE_BYTES]
            self._feed(data)
        if backlog:
            self._schedule_feeding()
        elif not self.pipeline and not (self._answering and len(self.cycle.body) > HIGH_WATER_LIMIT):
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._phase is _Phase.IDLE:
            self._enter(_Phase.IDLE)
        if self.flow.backlog:
            self._unset_keepalive_if_required()
            self._schedule_feeding()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or invalid(f"the request is not valid HTTP: {error}", code="invalid_http"))
            return
        self._received += len(data)
        if self._received - CHUNK_OVERHEAD * self._body_bytes > MAX_HEAD_BYTES + SLICE_BYTES:
            self._refuse(_head_too_large())

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse the request again as if it asked for no other protocol; rest: the bytes after its head."""
        method, self._upgrade_method = self._upgrade_method, None
        if method is None or method == b"CONNECT":
            self._refuse(HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "this server is no proxy", code="method_not_allowed"))
            return
        version = self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b" % (method, self.url, version)]
        head += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(b"\r\n".join([*head, b"", b""]) + rest)

    def _stop_parsing(self, error: HttpError) -> None:
        """Refuse the request that is being parsed; raises the error, since only an exception stops the parser."""
        self._refusal = error
        raise error

    # The end

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _enter(self, phase: _Phase) -> None:
        self._phase, self._phase_since = phase, self.loop.time()

    def _refuse(self, error: HttpError) -> None:
        """Stop reading from this client, and send it the reason unless another answer is being sent."""
        in_body = self._phase is _Phase.BODY
        self._enter(_Phase.ENDING)
        self._late_bytes = 0
        self.flow.backlog.clear()
        if not self._answering:
            if in_body:  # it has its answer
                self._linger()
            else:
                self._answer_and_linger(error)
        elif not in_body:  # earlier requests are still being answered
            self.cycle.keep_alive = False
            self.flow.resume_reading()
        elif self.pipeline or self.cycle.response_started:
            self.transport.close()
        else:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._answer_and_linger(error)

    def _answer_and_linger(self, error: HttpError) -> None:
        body = error.body()
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        own = [(name.encode(), value.encode()) for name, value in error.headers.items()]
        headers = [*self.server_state.default_headers, *fields, *own, (b"connection", b"close")]
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
        self._linger()

    def _finish(self) -> None:
        """End the connection after an answer that is the last one."""
        if self._phase is _Phase.BODY or self.flow.backlog:
            self._enter(_Phase.ENDING)
            self._late_bytes = 0
            self.flow.backlog.clear()
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """End the server's side, and discard further input for a moment.

        Closing a connection with unread input resets it, which can destroy the answer on its way (RFC 9112, 9.6).
        """
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def _make_room(self) -> None:
        """End the connection that has waited longest without a request; if it is this one, refuse it."""
        waiting = [other for other in self.connections if isinstance(other, Connection) and other._is_waiting()]
        oldest = min(waiting, key=lambda other: other._phase_since)
        if oldest is not self:
            oldest.transport.abort()
            return
        self._refuse(unavailable("too many connections are open", "too_many_connections"))

    def _is_waiting(self) -> bool:
        return self._phase in (_Phase.IDLE, _Phase.HEAD) and not self._answering and not self.transport.is_closing()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        whole = app if cycle.scope["http_version"] != "1.0" else without_chunks(app, cycle)
        super()._start_asgi_task(cycle, whole)  # type: ignore[arg-type]


def _head_too_large() -> HttpError:
    message = f"the head of the request has more than {MAX_HEADERS} fields or {MAX_HEAD_BYTES} bytes"
    return HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message, code="head_too_large")


def _too_slow(what: str) -> HttpError:
    return HttpError(HTTPStatus.REQUEST_TIMEOUT, f"{what} did not arrive in time", code="too_slow")
