"""The pool's choices: which address, which connection, and whose fault it is when there is none."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from yarl import URL

from muai_lab.load.connection_pool import ConnectionPool
from muai_lab.load.http_connection import ConnectionProblem, HttpConnection
from muai_lab.load.own_limits import GeneratorExhausted

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Answer:
    def __init__(self) -> None:
        self.content = b""
        self.connections = self.times_sent = 0

    def connected(self, took_ns: int) -> None:
        self.connections += 1

    def sent(self, at_ns: int) -> None:
        self.times_sent += 1

    def head(self, status: int, content_type: str, location: str) -> None:
        pass

    def body(self, data: bytes, at_ns: int) -> None:
        self.content += data

    def end(self, at_ns: int) -> None:
        pass


class Wire:
    """The server's end of a connection: answers every request, or closes without a byte once it `is_stale`."""

    def __init__(self) -> None:
        self.connection: HttpConnection | None = None
        self.is_stale = self.closed = False

    def write(self, data: bytes) -> None:
        assert self.connection is not None
        if self.is_stale:
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)
        else:
            asyncio.get_running_loop().call_soon(self.connection.data_received, GOOD)

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class Pool(ConnectionPool):
    """A pool on a network of addresses: what each says to a new connection."""

    def __init__(self, network: dict[str, OSError | None]) -> None:
        super().__init__(URL("http://name:80"), lambda: 0)
        self.network = network
        self._addresses = list(network)
        self.tried: list[str] = []
        self.wires: list[Wire] = []

    async def _connect_to(self, address: str) -> HttpConnection:
        self.tried.append(address)
        if (error := self.network[address]) is not None:
            raise error
        connection, wire = HttpConnection(lambda: 0), Wire()
        wire.connection = connection
        connection.connection_made(wire)  # type: ignore[arg-type]
        self.wires.append(wire)
        return connection

    async def ask(self) -> Answer:
        answer = Answer()
        await self.exchange(b"request", answer)
        return answer

    async def ask_on_new_connections(self, count: int) -> None:
        for _ in range(count):
            await self.ask()
            self._idle.clear()


def run(network: dict[str, OSError | None], main: Callable[[Pool], Coroutine[Any, Any, None]]) -> Pool:
    async def inner() -> Pool:
        pool = Pool(network)
        await main(pool)
        return pool

    return asyncio.run(inner())


REFUSED = OSError(errno.ECONNREFUSED, "refused")


def test_new_connections_are_spread_over_the_addresses_with_a_note() -> None:
    pool = run({"10.0.0.1": None, "10.0.0.2": None, "10.0.0.3": None}, lambda pool: pool.ask_on_new_connections(7))

    assert pool.tried == ["10.0.0.1", "10.0.0.2", "10.0.0.3"] * 2 + ["10.0.0.1"]
    assert pool.notes == (
        "name has 3 addresses; connections were spread over them: 10.0.0.1 (3), 10.0.0.2 (2), 10.0.0.3 (2)",
    )


def test_an_address_that_refuses_is_left_out_and_named() -> None:
    pool = run({"10.0.0.1": REFUSED, "10.0.0.2": None}, lambda pool: pool.ask_on_new_connections(4))

    assert pool.tried == ["10.0.0.1", *["10.0.0.2"] * 4]
    assert pool.notes[1] == "10.0.0.1 was left out: Connection refused"


def test_an_address_comes_back_when_all_others_refuse() -> None:
    async def main(pool: Pool) -> None:
        await pool.ask_on_new_connections(1)
        pool.network = {"10.0.0.1": None, "10.0.0.2": REFUSED}
        await pool.ask_on_new_connections(2)

    pool = run({"10.0.0.1": REFUSED, "10.0.0.2": None}, main)

    assert pool.tried == ["10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.1", "10.0.0.1"]


def test_the_two_loopback_addresses_of_localhost_need_no_note() -> None:
    assert run({"::1": REFUSED, "127.0.0.1": None}, lambda pool: pool.ask_on_new_connections(2)).notes == ()


def test_no_address_that_answers_is_a_problem_with_the_server() -> None:
    with pytest.raises(ConnectionProblem, match="cannot connect: Connection refused"):
        run({"10.0.0.1": REFUSED}, lambda pool: pool.ask_on_new_connections(1))


@pytest.mark.parametrize(
    ("number", "what", "remedy"),
    [
        (errno.EMFILE, "ran out of open files", "ulimit -Hn"),
        (errno.ENFILE, "open files of the whole machine", "fs.file-max"),
        (errno.EADDRNOTAVAIL, "ran out of local ports", "ip_local_port_range"),
        (errno.ENOMEM, "ran out of memory", "arrival.concurrency"),
        (errno.ENOBUFS, "memory for network buffers", "tcp_mem"),
    ],
)
def test_what_runs_out_here_is_the_generators_failure(number: int, what: str, remedy: str) -> None:
    async def main(pool: Pool) -> None:
        await pool.ask_on_new_connections(1)
        pool.network = {"10.0.0.1": OSError(number, "gone")}
        await pool.ask()

    with pytest.raises(GeneratorExhausted, match=what) as caught:
        run({"10.0.0.1": None}, main)
    assert remedy in str(caught.value)
    assert errno.errorcode[number] in str(caught.value)


def test_an_address_out_of_reach_is_no_lack_of_ports() -> None:
    unreachable = OSError(errno.EADDRNOTAVAIL, "no IPv6 here")

    assert run({"2001:db8::1": unreachable, "10.0.0.1": None}, lambda pool: pool.ask_on_new_connections(1)).tried == [
        "2001:db8::1",
        "10.0.0.1",
    ]


def test_a_reused_connection_that_closes_unanswered_is_replaced_once() -> None:
    answers: list[Answer] = []

    async def main(pool: Pool) -> None:
        answers.append(await pool.ask())
        pool.wires[0].is_stale = True
        answers.append(await pool.ask())

    pool = run({"10.0.0.1": None}, main)

    assert [answer.content for answer in answers] == [b"ok", b"ok"]
    assert (answers[1].times_sent, answers[1].connections) == (2, 1)
    assert pool.notes == ("requests sent twice, because the server closed the idle connection of the first try: 1",)


def test_a_new_connection_that_closes_unanswered_is_the_servers_failure() -> None:
    async def main(pool: Pool) -> None:
        original = pool._connect_to

        async def stale(address: str) -> HttpConnection:
            connection = await original(address)
            pool.wires[-1].is_stale = True
            return connection

        pool._connect_to = stale  # type: ignore[method-assign]
        await pool.ask()

    with pytest.raises(ConnectionProblem, match="closed the connection without an answer"):
        run({"10.0.0.1": None}, main)
