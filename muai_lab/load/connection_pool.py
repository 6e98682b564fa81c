"""A pool of client connections to one server.

An idle connection is used again, the last one first; otherwise a new one is opened.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address

from yarl import URL

from muai_lab.load.http_connection import ConnectionProblem, HttpConnection, ResponseSink, Unanswered, Unreachable
from muai_lab.load.own_limits import exhausted_by, raise_open_files_limit

# A server may close an idle connection (uvicorn after 5 s). The pool drops it a little earlier: a request written into
# a connection that closes would be lost.
_IDLE_CONNECTION_NS = 4_000_000_000


class ConnectionPool:
    """Connections to one server.

    New connections to a name with several addresses are spread over these. An address that refuses while another one
    answers is left out from then on.
    """

    def __init__(self, url: URL, clock: Callable[[], int], tls: ssl.SSLContext | None = None) -> None:
        """tls: the check of certificates; None for plain HTTP."""
        assert url.host is not None, "an http address has a host"
        assert url.port is not None, "and a port, its scheme's if no other"
        self._host, self._port = url.host, url.port
        self._clock = clock
        self._tls = tls
        self._addresses: list[str] = []
        self._left_out: dict[str, str] = {}  # with the reason
        self._opened: Counter[str] = Counter()
        self._resent = 0
        self._connecting = 0
        self._idle: list[HttpConnection] = []
        self._busy: set[HttpConnection] = set()

    @property
    def notes(self) -> tuple[str, ...]:
        """The addresses of the requests, and the requests that were sent twice, for readers of the results."""
        notes = []
        if len(self._addresses) > 1 and not all(ip_address(address).is_loopback for address in self._addresses):
            shares = ", ".join(f"{address} ({self._opened[address]:,})" for address in self._addresses)
            notes.append(
                f"{self._host} has {len(self._addresses)} addresses; connections were spread over them: {shares}"
            )
            notes += [f"{address} was left out: {why}" for address, why in self._left_out.items()]
        if self._resent:
            notes.append(
                f"requests sent twice, because the server closed the idle connection of the first try: {self._resent:,}"
            )
        return tuple(notes)

    async def open(self) -> None:
        """Look up the host's name, once for the whole load; raises ConnectionProblem."""
        raise_open_files_limit()
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label of the name is too long
            reason = getattr(error, "strerror", None) or error
            raise ConnectionProblem(f"cannot connect: {reason}") from error
        self._addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))

    async def exchange(self, request: bytes, answer: ResponseSink) -> None:
        """Send one request and read its answer.

        A reused connection that closes before the first byte was most likely idle for too long: the request is sent
        again on a new one.

        Raises:
            ConnectionProblem: There is no answer, or only a part of one.
            GeneratorExhausted: The generator ran out of connections.
            Exception: Any error of `answer`.
        """
        if (reused := self._take()) is not None:
            try:
                await self._exchange_on(reused, request, answer)
            except Unanswered:
                self._resent += 1
            else:
                return
        began_ns = self._clock()
        self._connecting += 1
        try:
            connection = await self._connect()
        finally:
            self._connecting -= 1
        answer.connected(self._clock() - began_ns)
        await self._exchange_on(connection, request, answer)

    async def _exchange_on(self, connection: HttpConnection, request: bytes, answer: ResponseSink) -> None:
        self._busy.add(connection)
        try:
            await connection.exchange(request, answer)
        except BaseException:
            connection.close()
            raise
        finally:
            self._busy.discard(connection)
        if connection.usable:
            connection.idle_since_ns = self._clock()
            self._idle.append(connection)

    async def close(self) -> None:
        """Drop all connections; harmless when called twice."""
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # the loop closes the sockets in its next round

    def _take(self) -> HttpConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.usable:
                continue
            if self._clock() - connection.idle_since_ns <= _IDLE_CONNECTION_NS:
                return connection
            connection.close()
        return None

    async def _connect(self) -> HttpConnection:
        problems: dict[str, OSError] = {}
        for address in self._in_turn():
            try:
                connection = await self._connect_to(address)
            except OSError as error:
                self._check_own_limits(error, address)
                problems[address] = error
            else:
                self._left_out |= {refusing: _why_not(error) for refusing, error in problems.items()}
                self._left_out.pop(address, None)
                self._opened[address] += 1
                return connection
        problem = next(iter(problems.values()))
        kind = ConnectionProblem if isinstance(problem, ssl.SSLError) else Unreachable  # to wait does not help with TLS
        raise kind(f"cannot connect: {_why_not(problem)}") from problem

    def _in_turn(self) -> list[str]:
        """Return all addresses: the next one first, those that refused last time at the end."""
        used = [address for address in self._addresses if address not in self._left_out]
        first = self._opened.total() % len(used) if used else 0
        return [*used[first:], *used[:first], *self._left_out]

    async def _connect_to(self, address: str) -> HttpConnection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: HttpConnection(self._clock),
            address,
            self._port,
            ssl=self._tls,
            server_hostname=self._host if self._tls else None,
        )
        return connection

    def _check_own_limits(self, error: OSError, address: str) -> None:
        """Raise GeneratorExhausted if the generator itself is the reason."""
        if error.errno == errno.EADDRNOTAVAIL and not self._opened[address]:
            return  # not reachable from here at all, as IPv6 on a machine without it
        if (exhausted := exhausted_by(error, len(self._busy) + len(self._idle) + self._connecting)) is not None:
            raise exhausted from error


def _why_not(error: Exception | None) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return (
                f"the server's certificate is not accepted: {error.verify_message}; name the authority that signed it "
                "with target.ca_file or the variable SSL_CERT_FILE"
            )
        case ssl.SSLError():
            return f"no TLS with this server ({error.reason or error}); is it an http:// address?"
        case OSError() if error.errno is not None and error.errno > 0:
            return os.strerror(error.errno)
        case _:
            return str(error)
