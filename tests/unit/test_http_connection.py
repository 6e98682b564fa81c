"""HTTP/1.1 as the load generator reads it, on a transport that is only a list of what was written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.load.http_connection import ConnectionProblem, HttpConnection
from tests.unit.virtual_time import run_virtual

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
HELLO = CHUNKED + b"5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n"
PLAIN = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nnope"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall that comes"


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


class Answer:
    def __init__(self, *, rejects: Exception | None = None) -> None:
        self.sent_ns: int | None = None
        self.heads: list[tuple[int, str]] = []
        self.content = b""
        self.stamps: list[int] = []
        self.ended_ns: int | None = None
        self.rejects = rejects

    def sent(self, at_ns: int) -> None:
        self.sent_ns = at_ns

    def connected(self, took_ns: int) -> None:
        pass

    def head(self, status: int, content_type: str, location: str) -> None:
        self.heads.append((status, content_type))

    def body(self, data: bytes, at_ns: int) -> None:
        if self.rejects is not None:
            raise self.rejects
        self.content += data
        self.stamps.append(at_ns)

    def end(self, at_ns: int) -> None:
        self.ended_ns = at_ns


Exchange = Callable[[HttpConnection, Transport, Answer], None]


def exchange(serve: Exchange, answer: Answer | None = None) -> tuple[Answer, HttpConnection, Transport]:
    """Send a request, let `serve` play the server, and wait for the end."""
    answer = answer or Answer()
    transport = Transport()
    connection = HttpConnection(count(1).__next__)

    async def main(_: object) -> None:
        connection.connection_made(transport)
        done = connection.exchange(b"GET / HTTP/1.1\r\n\r\n", answer)
        serve(connection, transport, answer)
        await done

    run_virtual(main)
    return answer, connection, transport


def feeding(*reads: bytes) -> Exchange:
    def serve(connection: HttpConnection, transport: Transport, answer: Answer) -> None:
        for read in reads:
            connection.data_received(read)

    return serve


def then_closed(data: bytes, error: Exception | None = None) -> Exchange:
    def serve(connection: HttpConnection, transport: Transport, answer: Answer) -> None:
        if data:
            connection.data_received(data)
        connection.connection_lost(error)

    return serve


@given(st.sets(st.integers(1, len(HELLO) - 1)))
def test_an_answer_may_be_cut_anywhere(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(HELLO)]

    answer, connection, _ = exchange(feeding(*(HELLO[start:stop] for start, stop in pairwise(edges))))

    assert answer.heads == [(200, "text/event-stream")]
    assert answer.content == b"hello, world"
    assert answer.ended_ns is not None
    assert connection.usable


def test_what_one_read_brings_has_one_time_and_what_the_next_brings_a_later_one() -> None:
    answer, _, _ = exchange(feeding(CHUNKED + b"1\r\na\r\n1\r\nb\r\n", b"1\r\nc\r\n0\r\n\r\n"))

    assert answer.content == b"abc"
    assert (answer.sent_ns, answer.stamps, answer.ended_ns) == (1, [2, 3], 3)


def test_a_connection_serves_one_exchange_after_another() -> None:
    async def main(_: object) -> list[bytes]:
        connection = HttpConnection(lambda: 0)
        connection.connection_made(Transport())
        contents = []
        for response in (HELLO, PLAIN, HELLO):
            answer = Answer()
            done = connection.exchange(b"GET / HTTP/1.1\r\n\r\n", answer)
            connection.data_received(response)
            await done
            contents.append(answer.content)
        return contents

    assert run_virtual(main) == [b"hello, world", b"nope", b"hello, world"]


@pytest.mark.parametrize("encoding", [b"gzip", b"br"])
def test_a_compressed_answer_is_named(encoding: bytes) -> None:
    compressed = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: " + encoding + b"\r\n\r\n")

    with pytest.raises(ConnectionProblem, match=rf"compressed \({encoding.decode()}\)"):
        exchange(feeding(compressed + b"1\r\n\x1f\r\n"))


def test_an_interim_answer_is_passed_over() -> None:
    answer, connection, _ = exchange(feeding(b"HTTP/1.1 100 Continue\r\n\r\n", PLAIN))

    assert answer.heads == [(404, "text/plain")]
    assert answer.content == b"nope"
    assert connection.usable


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    answer, connection, _ = exchange(then_closed(UNTIL_CLOSED))

    assert answer.content == b"all that comes"
    assert answer.ended_ns is not None
    assert not connection.usable


def test_a_server_that_will_close_is_not_asked_again() -> None:
    closing = PLAIN.replace(b"Content-Length", b"Connection: close\r\nContent-Length")

    answer, connection, _ = exchange(feeding(closing))

    assert answer.content == b"nope"
    assert not connection.usable


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    _, connection, transport = exchange(feeding(PLAIN))

    connection.data_received(PLAIN)

    assert transport.aborted


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        (then_closed(b""), "closed the connection without an answer"),
        (then_closed(b"", ConnectionResetError()), "reset the connection without an answer"),
        (then_closed(CHUNKED + b"5\r\nhel"), "broke off in the middle"),
        (then_closed(PLAIN[:-1]), "broke off in the middle"),
        (then_closed(b"HTTP/1.1 200"), "broke off in the middle"),
        (then_closed(UNTIL_CLOSED, ConnectionResetError()), "broke off in the middle"),
        (feeding(b"SSH-2.0-OpenSSH\r\n"), "not an HTTP answer"),
        (feeding(CHUNKED + b"no number\r\n"), "not an HTTP answer"),
    ],
    ids=["closed", "reset", "half a chunk", "half a body", "half a head", "reset at the end", "not HTTP", "bad chunk"],
)
def test_an_answer_that_is_none_says_why(serve: Exchange, message: str) -> None:
    with pytest.raises(ConnectionProblem, match=message):
        exchange(serve)


def test_what_came_before_a_fault_counts() -> None:
    answer = Answer()

    with pytest.raises(ConnectionProblem):
        exchange(feeding(CHUNKED + b"5\r\nhello\r\nno number\r\n"), answer)

    assert answer.content == b"hello"


def test_what_the_reader_of_an_answer_raises_reaches_the_one_who_waits() -> None:
    with pytest.raises(LookupError, match="not what I want"):
        exchange(feeding(HELLO), Answer(rejects=LookupError("not what I want")))
