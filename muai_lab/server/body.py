"""Bodies of requests: received within limits, and weighed before they are parsed.

A JSON parser holds the interpreter lock while it parses, also in a thread: 16 MiB of empty lists take seconds. So a
body is weighed while it arrives, and only a light one is parsed in this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.types import Receive, Scope

from muai_lab.server.exchange import ClientGone
from muai_lab.server.http_error import HttpError, unavailable

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_HELD_BYTES = 128 * 1024 * 1024  # of all bodies that are being received or parsed
SMALL_BODY_BYTES = 4 * 1024  # parsed on the event loop without weighing
LIGHT_BODY_NS = 3_000_000
# Upper bound of the parsing time of each of these bytes, nanoseconds; measured on a server core of 2021.
_COST_NS = {b"[": 700, b"{": 700, b",": 160, b":": 160, b"\\": 14}


@dataclass(slots=True)
class Body:
    """The body of one request. cost_ns: estimated parsing time in nanoseconds, never much too low."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    cost_ns: float = 0.0

    def add(self, part: bytes) -> None:
        """Append a part. A body that is already heavy is not weighed further."""
        self.parts.append(part)
        self.size += len(part)
        self.cost_ns += len(part)
        for byte, cost_ns in _COST_NS.items():
            if self.cost_ns > LIGHT_BODY_NS:
                return
            self.cost_ns += cost_ns * part.count(byte)

    @property
    def light(self) -> bool:
        """True if it may be parsed on the event loop."""
        return self.size <= SMALL_BODY_BYTES or self.cost_ns <= LIGHT_BODY_NS

    def joined(self) -> bytes:
        """Return the whole body in one piece."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)


class Bodies:
    """Receives bodies; the memory of all of them together is limited."""

    def __init__(self, most_held: int = MAX_HELD_BYTES) -> None:
        self.held = 0
        self._most_held = most_held

    @contextmanager
    def hold(self) -> Iterator[Body]:
        """Yield a body that counts until the end of the block."""
        body = Body()
        try:
            yield body
        finally:
            self.held -= body.size
            body.parts.clear()

    async def receive(self, body: Body, scope: Scope, receive: Receive, limit: int = MAX_BODY_BYTES) -> None:
        """Receive the whole body of the request, at most `limit` bytes.

        Raises:
            HttpError: (413) The body is longer; (503) too much is being received at once.
            ClientGone: The client went away before the body was complete.
        """
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > limit:  # the HTTP parser has checked that it is a number
                raise _too_large(limit)
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            part: bytes = message.get("body", b"")
            self.held += len(part)
            body.add(part)
            if body.size > limit:
                raise _too_large(limit)
            if self.held > self._most_held:
                raise unavailable("too many large requests arrive at once", "too_much_at_once")
            more = message.get("more_body", False)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return the whole body of one request; raises as `Bodies.receive`."""
    bodies = Bodies()
    with bodies.hold() as body:
        await bodies.receive(body, scope, receive, limit)
        return body.joined()


def _too_large(limit: int) -> HttpError:
    message = f"the body is larger than {limit} bytes"
    return HttpError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, code="body_too_large", headers={"connection": "close"}
    )
