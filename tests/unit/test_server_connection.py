"""HTTP as clients of every kind speak it: what is served, what is refused, and who loses the connection."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import orjson
import pytest
from uvicorn.server import ServerState

from muai_lab.server.connection import (
    KEEP_ALIVE_S,
    LATE_BODY_BYTES,
    LINGER_S,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_TARGET_BYTES,
    MIN_BODY_BYTES_PER_S,
    SLICE_BYTES,
)
from tests.unit.http_client import Client, with_client

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with method, path and body, as a stream of two pieces."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    start = f"{scope['method']} {scope['path']} ".encode()
    await send({"type": "http.response.body", "body": start, "more_body": True})
    await send({"type": "http.response.body", "body": body})


def silent(scope: Any, receive: Any, send: Any) -> Any:
    """Never answers."""
    return asyncio.Event().wait()


async def hasty(scope: Any, receive: Any, send: Any) -> None:
    """Answers without reading the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def post(body: bytes, *more: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"POST /x HTTP/" + version, b"Host: x", b"Content-Length: %d" % len(body), *more, b"", b""]
    return b"\r\n".join(lines) + body


class Parsed:
    """The answers in a stream of bytes."""

    def __init__(self, data: bytes) -> None:
        self.bodies: list[bytes] = []
        self.statuses: list[int] = []
        self.complete = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.bodies.append(b"")

    def on_headers_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_message_complete(self) -> None:
        self.complete += 1


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of the only answer, which is an error in OpenAI's shape and says that the connection ends."""
    parsed = Parsed(answer)
    assert len(parsed.statuses) == 1
    assert (b"connection", b"close") in parsed.headers
    error = orjson.loads(parsed.bodies[0])["error"]
    return parsed.statuses[0], error["code"]


# What is served


@pytest.mark.parametrize("pieces", [None, 1, 7])
def test_a_request_is_served_however_it_is_cut(pieces: int | None) -> None:
    async def work(client: Client) -> None:
        answer = Parsed(await client.send(post(b"hello"), pieces))

        assert (answer.statuses, answer.bodies) == ([200], [b"POST /x hello"])

    with_client(work, echo)


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.0"])
@pytest.mark.parametrize("pieces", [None, 1, 40])
def test_an_upgrade_is_ignored_and_the_request_served(upgrade: bytes, pieces: int | None) -> None:
    """Java's client and `curl --http2` ask for h2c in their first request."""

    async def work(client: Client) -> None:
        upgrading = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + upgrade, b"HTTP2-Settings: AAEAAEAAAAIA")
        await client.send(post(b"hello", *upgrading), pieces)
        answer = Parsed(await client.send(post(b"again"), pieces))

        assert (answer.statuses, answer.bodies) == ([200, 200], [b"POST /x hello", b"POST /x again"])
        assert not client.transport.closed

    with_client(work, echo)


def test_an_upgrade_with_chunks_or_without_a_body_is_ignored_too() -> None:
    async def work(client: Client) -> None:
        upgrading = b"Connection: upgrade\r\nUpgrade: h2c\r\n"
        await client.send(b"GET /a HTTP/1.1\r\nHost: x\r\n" + upgrading + b"\r\n")
        chunked = b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + upgrading + b"\r\n"
        answer = Parsed(await client.send(chunked + b"3\r\nabc\r\n0\r\n\r\n"))

        assert answer.bodies == [b"GET /a ", b"POST /b abc"]

    with_client(work, echo)


def test_a_client_of_http_1_0_gets_no_chunks_and_the_end_of_the_connection_ends_its_answer() -> None:
    async def work(client: Client) -> None:
        head, _, body = (await client.send(post(b"hello", version=b"1.0"))).partition(b"\r\n\r\n")

        assert body == b"POST /x hello"
        assert b"transfer-encoding" not in head.lower()
        assert b"connection: close" in head.lower()
        assert client.transport.closed

    with_client(work, echo)


def test_a_client_of_http_1_0_gets_an_answer_of_known_length_as_it_is() -> None:
    async def work(client: Client) -> None:
        head, _, body = (await client.send(b"GET / HTTP/1.0\r\n\r\n")).partition(b"\r\n\r\n")

        assert body == b"ok"
        assert b"content-length: 2" in head.lower()

    with_client(work, hasty)


def test_a_large_body_is_parsed_in_slices_with_turns_of_the_loop_between_them() -> None:
    async def work(client: Client) -> None:
        fed: list[int] = []
        feed = client.connection._feed

        def noting(data: bytes) -> None:
            fed.append(len(data))
            feed(data)

        client.connection._feed = noting  # type: ignore[method-assign]
        body = bytes(range(256)) * 1000
        client.connection.data_received(post(body))

        assert (fed, client.transport.reading) == ([], False)
        answer = Parsed(await client.settle())
        assert answer.bodies == [b"POST /x " + body]
        assert max(fed) == SLICE_BYTES
        assert client.transport.reading

    with_client(work, echo)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def work(client: Client) -> None:
        answer = Parsed(await client.send(b"".join(post(b"%d" % number) for number in range(MAX_PIPELINED))))

        assert answer.bodies == [b"POST /x %d" % number for number in range(MAX_PIPELINED)]

    with_client(work, echo)


# What is refused


@pytest.mark.parametrize(
    ("request_bytes", "refused"),
    [
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEADERS + 2), (431, "head_too_large")),
        (b"GET / HTTP/1.1\r\na: " + b"b" * (MAX_HEAD_BYTES + 2 * SLICE_BYTES), (431, "head_too_large")),
        (b"GET / HTTP/1.1\r\n" + b"a" * (MAX_HEAD_BYTES + 2 * SLICE_BYTES), (431, "head_too_large")),
        (b"GET / HTTP/1.1\r\na: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n", (431, "head_too_large")),
        (b"GET /" + b"a" * MAX_TARGET_BYTES + b" HTTP/1.1\r\n\r\n", (414, "address_too_long")),
        (b"\r\n" * (MAX_HEAD_BYTES + SLICE_BYTES), (431, "head_too_large")),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", (405, "method_not_allowed")),
        (b"nonsense\r\n\r\n", (400, "invalid_http")),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, "invalid_http")),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", (400, "invalid_http")),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", (400, "invalid_http")),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", (400, "invalid_http")),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400, "invalid_http")),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", (400, "invalid_http")),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", (400, "invalid_http")),
    ],
)
@pytest.mark.parametrize("pieces", [None, 1000])
def test_a_bad_head_is_refused(request_bytes: bytes, refused: tuple[int, str], pieces: int | None) -> None:
    async def work(client: Client) -> None:
        assert refusal(await client.send(request_bytes, pieces)) == refused
        assert client.transport.half_closed

    with_client(work, echo)


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n",  # no length of a chunk
        b"1;" + b"a" * (MAX_HEAD_BYTES + 2 * SLICE_BYTES),  # an endless extension
        b"1\r\na\r\n0\r\n" + b"a: b\r\n" * (MAX_HEADERS + 2),  # trailers count as headers
        b"1\r\na\r\n0\r\na: " + b"b" * (MAX_HEAD_BYTES + 2 * SLICE_BYTES),
    ],
)
def test_a_bad_chunked_body_ends_its_request_and_is_refused(body: bytes) -> None:
    async def work(client: Client) -> None:
        answer = await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)

        assert refusal(answer)[0] in (400, 431)
        assert not client.state.tasks

    with_client(work, echo)


def test_a_body_of_one_byte_chunks_is_served() -> None:
    async def work(client: Client) -> None:
        chunks = b"1\r\na\r\n" * 50_000
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = Parsed(await client.send(head + chunks + b"0\r\n\r\n"))

        assert answer.bodies == [b"POST / " + b"a" * 50_000]

    with_client(work, echo)


def test_a_flood_of_pipelined_requests_is_bounded() -> None:
    async def work(client: Client) -> None:
        await client.send(GET * 10_000)

        assert len(client.connection.pipeline) == MAX_PIPELINED
        assert len(client.state.tasks) == 1
        assert not client.connection.flow.backlog
        assert client.transport.written == b""

    with_client(work, silent)


def test_nothing_breaks_into_an_answer_that_has_begun() -> None:
    async def begun(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"some", "more_body": True})
        await asyncio.Event().wait()

    async def work(client: Client) -> None:
        before = await client.send(GET)
        after = await client.send(b"nonsense\r\n\r\n")

        assert before == after

    with_client(work, begun)


def test_after_a_refusal_the_client_may_go_on_sending_for_a_moment() -> None:
    """A connection closed at once would be reset, and the refusal lost with it."""

    async def work(client: Client) -> None:
        await client.send(b"nonsense\r\n\r\n")
        written = await client.send(b"x" * 100_000)

        assert not client.transport.closed
        assert written == client.transport.written
        client.wait(LINGER_S + 1)
        assert client.transport.closed

    with_client(work, echo)


def test_the_rest_of_a_body_that_is_answered_already_is_bounded() -> None:
    async def work(client: Client) -> None:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        assert Parsed(await client.send(head)).bodies == [b"ok"]
        await client.send(b"x" * LATE_BODY_BYTES)
        assert not client.transport.half_closed
        await client.send(b"x" * SLICE_BYTES)
        assert client.transport.half_closed

    with_client(work, hasty)


def test_an_answer_that_ends_the_connection_does_not_reset_a_client_that_still_sends() -> None:
    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"2"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": b"no"})

    async def work(client: Client) -> None:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nxxx")

        assert Parsed(client.transport.written).statuses == [413]
        assert (client.transport.half_closed, client.transport.closed) == (True, False)

    with_client(work, refusing)


# Who is too slow


def test_a_head_that_does_not_come_is_not_waited_for() -> None:
    async def work(client: Client) -> None:
        await client.send(b"GET / HT")
        client.wait(29)
        assert client.transport.written == b""
        client.connection.data_received(b"T")  # a byte now and then does not prolong it
        client.wait(31)

        assert refusal(client.transport.written) == (408, "too_slow")

    with_client(work, echo, timeout_s=30.0)


def test_a_body_may_take_time_in_proportion_to_what_came() -> None:
    async def work(client: Client) -> None:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        await client.send(b"x" * 10 * MIN_BODY_BYTES_PER_S)
        client.wait(39)
        assert client.transport.written == b""
        client.wait(41)

        assert refusal(await client.settle()) == (408, "too_slow")
        assert not client.state.tasks

    with_client(work, echo, timeout_s=30.0)


def test_a_client_whose_body_is_not_read_is_not_too_slow() -> None:
    async def work(client: Client) -> None:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 200_000)
        assert not client.transport.reading
        client.wait(1000)

        assert not client.transport.closed

    with_client(work, silent, timeout_s=30.0)


@pytest.mark.parametrize("first", [b"", GET])
def test_an_idle_connection_ends_in_silence(first: bytes) -> None:
    async def work(client: Client) -> None:
        before = await client.send(first)
        client.wait(KEEP_ALIVE_S - 1)
        assert not client.transport.closed
        client.wait(KEEP_ALIVE_S + 1)

        assert client.transport.is_closing()
        assert client.transport.written == before

    with_client(work, echo)


def test_a_client_that_waits_for_its_answer_is_not_idle() -> None:
    async def work(client: Client) -> None:
        await client.send(GET)
        client.wait(10_000)

        assert not client.transport.closed

    with_client(work, silent)


def test_a_client_that_does_not_read_its_answer_loses_its_connection() -> None:
    async def work(client: Client) -> None:
        await client.send(GET)
        client.connection.pause_writing()
        client.wait(29)
        assert not client.transport.closed
        client.connection.resume_writing()
        client.connection.pause_writing()
        client.wait(31)

        assert client.transport.aborted
        client.connection.connection_lost(None)  # as the transport does then

    with_client(work, silent, timeout_s=30.0)


def test_a_connection_whose_end_is_not_taken_is_aborted() -> None:
    async def work(client: Client) -> None:
        await client.send(GET)
        client.transport.close()  # in vain: what was written is never read
        client.wait(1)
        client.wait(32)

        assert client.transport.aborted

    with_client(work, hasty, timeout_s=30.0)


# Too many at once


def test_one_connection_too_many_ends_the_one_that_waited_longest_without_a_request() -> None:
    async def work() -> None:
        state = ServerState()
        busy, idle, later = (Client(silent, state, max_connections=3) for _ in range(3))
        await busy.send(GET)
        idle.connection._phase_since -= 2
        later.connection._phase_since -= 1

        another = Client(silent, state, max_connections=3)

        assert [client.transport.aborted for client in (busy, idle, later, another)] == [False, True, False, False]

    asyncio.run(work())


def test_if_all_have_a_request_one_connection_too_many_is_refused() -> None:
    async def work() -> None:
        state = ServerState()
        busy = [Client(silent, state, max_connections=2) for _ in range(2)]
        for client in busy:
            await client.send(GET)

        another = Client(silent, state, max_connections=2)

        assert refusal(another.transport.written) == (503, "too_many_connections")
        assert not any(client.transport.closed for client in busy)

    asyncio.run(work())
