"""A connection of the server over a transport of memory, for tests of what a client may do to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.server import ServerState

from muai_lab.server.connection import Connection, ConnectionConfig

TURNS = 200


class MemoryTransport(asyncio.Transport):
    """What a connection did to its socket."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.half_closed = self.closed = self.aborted = False

    def write(self, data: Any) -> None:
        assert not self.half_closed
        self.written += bytes(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 5000)}.get(name, default)


class Client:
    """One client of a server that runs `app`; all made with the same state belong to one server."""

    def __init__(
        self, app: Any, state: ServerState | None = None, *, timeout_s: float = 30.0, max_connections: int = 100
    ) -> None:
        config = ConnectionConfig(
            app,
            client_timeout_s=timeout_s,
            max_connections=max_connections,
            loop="none",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
        )
        config.load()
        self.loop = asyncio.get_running_loop()
        self.state = state or ServerState()
        self.transport = MemoryTransport()
        self.connection = Connection(config, self.state, {}, self.loop)
        self.connection.connection_made(self.transport)

    async def send(self, data: bytes, pieces: int | None = None) -> bytes:
        """Send bytes as the system would deliver them, let the server work; returns what it answered so far."""
        step = len(data) if pieces is None else pieces
        for at in range(0, len(data), max(1, step)):
            self.connection.data_received(data[at : at + step])
        return await self.settle()

    async def settle(self) -> bytes:
        """Let the loop turn, often enough for everything that is booked."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
        return self.transport.written

    def wait(self, seconds: float) -> None:
        """Let the server look after its connections as if so much time had passed since now."""
        self.connection.end_if_overdue(self.loop.time() + seconds)


def with_client(work: Callable[[Client], Awaitable[None]], app: Any, **options: Any) -> None:
    async def run() -> None:
        await work(Client(app, **options))

    asyncio.run(run())
