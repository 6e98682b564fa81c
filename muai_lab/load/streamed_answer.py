"""Responses as they arrive: the streamed answer of a measured request, and the whole answer of a question."""

from __future__ import annotations

from muai_lab.load.completion_stream import CompletionStream, StreamError
from muai_lab.load.http_connection import ConnectionProblem
from muai_lab.load.records import RequestRecord
from muai_lab.load.sse import SseParser

_ERROR_BODY_BYTES = 4096
_WHOLE_BYTES = 16 << 20


class StreamedAnswer:
    """Reads one response into the record of its request."""

    __slots__ = ("_error_body", "_events", "_record", "_stream", "content_type", "location")

    def __init__(self, record: RequestRecord) -> None:
        self.content_type = self.location = ""
        self._record = record
        self._events = SseParser()
        self._stream = CompletionStream(record)
        self._error_body: bytes | None = None

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

    def body(self, data: bytes, at_ns: int) -> None:
        if self._error_body is not None:
            self._error_body += data[: _ERROR_BODY_BYTES - len(self._error_body)]
            return
        take = self._stream.take
        for payload in self._events.feed(data):
            take(payload, at_ns)
        if self._events.overlong:
            raise StreamError(f"an event of the stream is longer than {SseParser.LIMIT_BYTES >> 20} MiB")

    def end(self, at_ns: int) -> None:
        if self._error_body is not None:
            return
        try:
            self._stream.finish()
        except StreamError as error:
            if "text/event-stream" in self.content_type:
                raise
            kind = self.content_type or "none"
            raise StreamError(f"{error} (content type {kind} instead of text/event-stream)") from error
        self._record.end("ok", at_ns)

    def settle(self) -> None:
        """Count the tokens that came; also of an answer that was cut short."""
        self._stream.settle()

    @property
    def usage_per_chunk(self) -> bool:
        """True if the server counted the tokens of every chunk so far."""
        return self._stream.usage_per_chunk


class WholeAnswer:
    """Keeps one response, for the few questions that are not measured."""

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
