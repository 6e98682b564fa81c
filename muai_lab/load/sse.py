"""The payloads of server-sent events, from the bytes of a stream.

Follows the WHATWG HTML standard, section "Server-sent events" (event stream interpretation), for the `data` field,
which LLM streams use. Other fields and comments are read and dropped.
"""

from __future__ import annotations

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class SseParser:
    """Incremental parser; one per response. Chunks may be split anywhere, even inside a line end.

    overlong: True once an event exceeded `LIMIT_BYTES`; its beginning is dropped, and the stream cannot be read on.
    """

    LIMIT_BYTES = 4 << 20

    __slots__ = ("_begun", "_data", "_line", "_skip_lf", "overlong")

    def __init__(self) -> None:
        self._line = b""  # the line that has not ended yet
        self._data: list[bytes] = []  # data lines of the event that has not ended yet
        self._skip_lf = False  # the last byte was a CR: an LF that follows belongs to it
        self._begun = False  # the first line was read: no byte order mark can come any more
        self.overlong = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Process the next bytes and return the payloads of all events that they complete, in order."""
        # Nearly every chunk of an LLM stream is a run of whole `data: {...}\n\n` events: no state, no lines.
        if (
            chunk.startswith(b"data: ")
            and chunk.endswith(b"\n\n")
            and chunk.count(b"\n") == 2 + 2 * chunk.count(b"\n\ndata: ")
            and b"\r" not in chunk
            and not (self._line or self._data or self._skip_lf)
        ):
            self._begun = True
            return chunk[6:-2].split(b"\n\ndata: ")
        return self._feed_any(chunk)

    def _feed_any(self, chunk: bytes) -> list[bytes]:
        if self._skip_lf and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._skip_lf = False
        if chunk.endswith(b"\r"):
            self._skip_lf = True
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self._line + chunk).split(b"\n")
        self._line = lines.pop()
        payloads: list[bytes] = []
        self._take_lines(lines, payloads)
        if len(self._line) + sum(map(len, self._data)) > self.LIMIT_BYTES:
            self.overlong = True
            self._line, self._data = b"", []
        return payloads

    def rest(self) -> bytes | None:
        """Return the payload of an event whose end is missing, once the stream is over; None if there is none.

        The standard drops such an event, but real servers omit the last line ends.
        """
        if not (self._line or self._data):
            return None
        payloads: list[bytes] = []
        self._take_lines([self._line, b""], payloads)
        self._line = b""
        return payloads[0] if payloads else None

    def _take_lines(self, lines: list[bytes], payloads: list[bytes]) -> None:
        if not self._begun and lines:
            self._begun = True
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        for line in lines:
            if not line:
                if self._data:
                    payloads.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif line == b"data":
                self._data.append(b"")
