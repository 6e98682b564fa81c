"""Listening sockets and HTTP servers on them; for the limits of a client see `muai_lab.server.connection`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import resource
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from muai_lab.errors import RunError
from muai_lab.server.connection import KEEP_ALIVE_S, Connection, ConnectionConfig

BACKLOG = 2048
TICKS_PER_SWEEP = 10  # uvicorn ticks ten times a second; ending hundreds of connections in one tick takes too long
SPARE_DESCRIPTORS = 128  # for model files, pipes and other open files of the process


def listen(host: str, port: int, key: str) -> socket.socket:
    """Return a listening socket.

    It listens at once: of two servers that start together, one fails now and not after loading its models.

    Args:
        host: Name or address of this machine.
        port: 0 takes any free port.
        key: The setting that holds the port, for messages.

    Raises:
        RunError: The port is in use, or the address is not one of this machine.
    """
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot even be looked up
        raise RunError(f"cannot listen on {where}: {host!r} is no address of this machine ({error})") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            advice = f"the port is in use; choose another with {key}=PORT, or {key}=0 for any free port"
        elif error.errno == errno.EACCES:
            advice = f"not permitted; choose a port above 1023 with {key}=PORT"
        else:
            advice = f"{error.strerror}; choose an address of this machine with {key.removesuffix('port')}host=ADDRESS"
        raise RunError(f"cannot listen on {where}: {advice}") from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket, path: str = "") -> str:
    """Return a URL under which this machine reaches the socket (the loopback if it listens on all addresses)."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://{f'[{address}]' if address.version == 6 else address}:{port}{path}"


def is_exposed(listener: socket.socket) -> bool:
    """True if other machines can reach the socket."""
    return not ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def connections_allowed(wanted: int) -> int:
    """Return the limit of open connections: the wanted number, or fewer if the system grants fewer descriptors.

    The soft limit of open files is raised as far as the hard one allows.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_DESCRIPTORS
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - SPARE_DESCRIPTORS))


class HttpServer(uvicorn.Server):
    """uvicorn on a given socket and the running loop, without its signal handlers."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        flush_s: int,
        client_timeout_s: float = 30.0,
        max_connections: int = 256,
    ) -> None:
        """flush_s: longest time that `stop` waits for answers being read; others: see `ConnectionConfig`."""
        super().__init__(
            ConnectionConfig(
                app,
                client_timeout_s=client_timeout_s,
                max_connections=max_connections,
                loop="none",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=flush_s,
            )
        )
        self._listener = listener
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start, and return once requests are answered."""
        self._task = asyncio.create_task(self.serve(sockets=[self._listener]))
        await self._up.wait()

    async def stop(self) -> None:
        """Close the socket and idle connections at once, the others when their answer is complete or time is over."""
        self.should_exit = True
        if self._task is not None:
            await self._task
        self._listener.close()

    async def on_tick(self, counter: int) -> bool:
        self.sweep(counter, asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def sweep(self, tick: int, now: float) -> None:
        """Close connections whose clients are too slow; each is checked once in `TICKS_PER_SWEEP` ticks.

        now: time of the loop, seconds.
        """
        for connection in list(self.server_state.connections):
            if hash(connection) % TICKS_PER_SWEEP == tick % TICKS_PER_SWEEP and isinstance(connection, Connection):
                connection.end_if_overdue(now)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Keep the signal handlers of the process."""
        yield
