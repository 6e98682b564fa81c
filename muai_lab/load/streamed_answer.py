"""Responses as they arrive: the streamed answer to a measured request, and the whole answer to a query."""

from __future__ import annotations

from muai_lab.load.completion_stream import CompletionStream, StreamError, error_message
from muai_lab.load.foreign_values import parse_object
from muai_lab.load.http_connection import ConnectionProblem
from muai_lab.load.sse import SseParser
from muai_lab.request_record import RequestRecord

_ERROR_BODY_BYTES = 4096
_WHOLE_BYTES = 16 << 20


class StreamedAnswer:
    """Reads one response into the record of its request."""

    __slots__ = ("_error_body", "_events", "_other", "_read_ns", "_record", "_stream", "content_type", "location")

    def __init__(self, record: RequestRecord) -> None:
        self.content_type = self.location = ""
        self._record = record
        self._events = SseParser()
        self._stream = CompletionStream(record)
        self._error_body: bytes | None = None
        self._read_ns = 0
        self._other: bytes | None = None  # the first bytes of an answer with another content type than that of a stream

    @property
    def content(self) -> bytes:
        """The first bytes of an answer other than 200."""
        return self._error_body or b""

    def connected(self, took_ns: int) -> None:
        self._record.connect_ns = took_ns

    def sent(self, at_ns: int) -> None:
        self._record.sent_ns = at_ns

    def head(self, status: int, content_type: str, location: str) -> None:
        self._record.http_status = status
        self.content_type, self.location = content_type, location
        if status != 200:
            self._error_body = b""
        elif "text/event-stream" not in content_type:
            self._other = b""

    def body(self, data: bytes, at_ns: int) -> None:
        if self._error_body is not None:
            self._error_body += data[: _ERROR_BODY_BYTES - len(self._error_body)]
            return
        if self._other is not None:
            self._other += data[: _ERROR_BODY_BYTES - len(self._other)]
        self._read_ns = at_ns
        self._stream.take(self._events.feed(data), at_ns)
        if self._events.overlong:
            raise StreamError(f"an event of the stream is longer than {SseParser.LIMIT_BYTES >> 20} MiB")

    def end(self, at_ns: int) -> None:
        if self._error_body is not None:
            return
        rest = self._events.rest()
        if rest is not None and (rest.strip() == b"[DONE]" or parse_object(rest) is not None):
            self._stream.take([rest], self._read_ns)
        try:
            self._stream.finish()
        except StreamError as error:
            if self._other is None:
                raise
            kind = self.content_type or "none"
            raise StreamError(f"{error} (content type {kind} instead of text/event-stream){self._said()}") from error
        self._record.end("ok", at_ns)

    def _said(self) -> str:
        """Return the text of an answer that is no stream, for an error message."""
        body = self._other or b""
        found = parse_object(body)
        said = body.decode("utf-8", "replace") if found is None or "choices" in found else error_message(found)
        return f": {' '.join(said.split())[:160]}" if body and not body.startswith(b"data:") else ""

    def settle(self) -> None:
        """Count the tokens that arrived, also of an answer that was cut short."""
        self._stream.settle()

    @property
    def usage_per_chunk(self) -> bool:
        """True if the server counted the tokens of every chunk so far."""
        return self._stream.usage_per_chunk


class WholeAnswer:
    """Keeps one response, for the few queries that are not measured."""

    def __init__(self) -> None:
        self.status = 0
        self.content_type = self.location = ""
        self.content = b""

    def connected(self, took_ns: int) -> None:
        pass

    def sent(self, at_ns: int) -> None:
        pass

    def head(self, status: int, content_type: str, location: str) -> None:
        self.status, self.content_type, self.location = status, content_type, location

    def body(self, data: bytes, at_ns: int) -> None:
        if len(self.content) + len(data) > _WHOLE_BYTES:
            raise ConnectionProblem(f"the answer is longer than {_WHOLE_BYTES >> 20} MiB")
        self.content += data

    def end(self, at_ns: int) -> None:
        pass
