"""The transport of a connection, as its input and its answers see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl


class BacklogFlow(FlowControl):
    """Flow control that does not resume reading while received bytes wait for the parser."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.backlog = bytearray()

    def resume_reading(self) -> None:
        if not self.backlog:
            super().resume_reading()


class AnswerTransport(asyncio.Transport):
    """The transport of an answer: its end does not cut off a client that is still sending."""

    def __init__(self, transport: asyncio.Transport, finish: Callable[[], None]) -> None:
        super().__init__()
        self._transport = transport
        self._finish = finish
        self.write = transport.write  # type: ignore[method-assign]
        self.is_closing = transport.is_closing  # type: ignore[method-assign]

    def close(self) -> None:
        self._finish()

    def forget(self) -> None:
        """Release the connection, which is over: a reference cycle would wait for the garbage collector."""
        self._finish = self._transport.close
