"""Can one client hold the server up? Requests that are meant to, one after the other, and what each of them did.

    python -m benchmarks.hostile_requests [--engine pytorch] [--only WORD] [--json] [--document docs/server-results.md]

A real server on the loopback with the embedded model. A process of its own asks for /health every few milliseconds and
keeps the longest answer time; memory is that of the server with its helper process. The first row asks for nothing: it
is what the machine itself does to the probe. Clients that are too slow are given 3 s instead of the default of 30.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from benchmarks.document import replace_part
from muai_lab.server.admin_call import TOKEN_VARIABLE

MIB = 1024 * 1024
CLIENT_TIMEOUT_S = 3.0
PROBE_EVERY_S = 0.004
ANSWER_S = 30.0  # longest that a client here waits
SETTLE_S = 0.3
TARGET_MS = 50.0
MODEL = "qwen_chat"
ADMIN_TOKEN = "of-this-benchmark"
SLOW_CLIENTS = 450
CANCELLED = 1500
CANCELLED_AT_ONCE = 16

Address = tuple[str, int]


@contextmanager
def server(engine: str) -> Iterator[tuple[Address, int]]:
    """A server process; its address and its number."""
    command = [sys.executable, "-m", "muai_lab", "serve", f"engine={engine}"]
    command += ["monitoring.server.host=127.0.0.1", "monitoring.server.port=0", "monitoring.prometheus.port=0"]
    command += [f"monitoring.server.client_timeout_s={CLIENT_TIMEOUT_S}", "optimization.cache.max_memory_mb=64"]
    environment = os.environ | {TOKEN_VARIABLE: ADMIN_TOKEN}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            parts = urlsplit(ready["url"])
            yield (str(parts.hostname), int(parts.port or 0)), ready["pid"]
        finally:
            process.terminate()


def probe(address: Address, orders: Connection) -> None:
    """Ask for /health until told to end; after each order answer with the longest time since the one before."""
    longest = 0.0
    connection = http.client.HTTPConnection(*address, timeout=ANSWER_S)
    while True:
        if orders.poll(PROBE_EVERY_S):
            if orders.recv() == "end":
                return
            orders.send(longest)
            longest = 0.0
        began = time.perf_counter()
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection.close()
        longest = max(longest, time.perf_counter() - began)


# Clients


def status_of(answer: bytes) -> str:
    """The status of the first answer, or that there is none."""
    found = re.match(rb"HTTP/1\.1 (\d+)", answer)
    return found[1].decode() if found else "closed without an answer" if not answer else "no HTTP"


def send(address: Address, *pieces: bytes, repeat: int = 1) -> str:
    """Send a request, or as much of it as the server takes; returns the status of the answer."""
    with socket.create_connection(address, timeout=ANSWER_S) as client:
        with contextlib.suppress(ConnectionError):
            for _ in range(repeat):
                for piece in pieces:
                    client.sendall(piece)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := client.recv(65536):
                answer = answer or piece
    return status_of(answer)


def post(body: bytes, path: str = "/v1/completions", *headers: str, version: str = "1.1") -> bytes:
    """A request with a JSON body, after which the connection ends."""
    given = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    for header in headers:
        name, _, value = header.partition(": ")
        given[name.lower()] = value
    lines = [f"POST {path} HTTP/{version}", "host: x", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def nothing(_address: Address) -> str:
    """Ask for nothing, for two seconds."""
    time.sleep(2)
    return "-"


def chunked_head() -> bytes:
    """The head of a request whose body comes in chunks."""
    lines = ["POST /v1/completions HTTP/1.1", "host: x", "content-type: application/json", "connection: close"]
    return "\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode()


def completion(**fields: object) -> bytes:
    """A completion of one token, unless told otherwise."""
    return json.dumps({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 1, **fields}).encode()


def repeated(start: bytes, item: bytes, size: int, end: bytes) -> bytes:
    """A body of about `size` bytes that repeats one item."""
    return start + item * ((size - len(start) - len(end)) // len(item)) + end


def many(address: Address, data: bytes, wait_s: float, *, receive_buffer: int | None = None) -> str:
    """Clients that send this much and then nothing; returns how many are closed by the server in the time given."""
    clients = []
    for _ in range(SLOW_CLIENTS if receive_buffer is None else 8):
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(address)
        client.sendall(data)
        clients.append(client)
    time.sleep(wait_s)
    try:
        return ", ".join(f"{count} × {end}" for end, count in Counter(map(_end_of, clients)).items())
    finally:
        for client in clients:
            client.close()


def _end_of(client: socket.socket) -> str:
    """How the server ended a connection."""
    client.settimeout(0.05)
    answer = b""
    try:
        while piece := client.recv(1 << 20):
            answer = answer or piece[:64]
    except TimeoutError:
        return "still open"
    except ConnectionError:
        pass
    return "cut off" if status_of(answer) == "200" else status_of(answer)


def cancelled(address: Address) -> str:
    """Clients that hang up after the first token of one to three choices; returns the statuses that they saw."""

    def one(number: int) -> str:
        body = completion(max_tokens=200, ignore_eos=True, stream=True, n=1 + number % 3, prompt=f"Tell me {number}")
        with socket.create_connection(address, timeout=ANSWER_S) as client:
            client.sendall(post(body))
            return status_of(client.recv(2048))

    with ThreadPoolExecutor(CANCELLED_AT_ONCE) as clients:
        seen = Counter(clients.map(one, range(CANCELLED)))
    return ", ".join(f"{count:,} × {status}" for status, count in seen.items())


def large_at_once(address: Address) -> str:
    """24 bodies of 15 MiB of which the last byte never comes."""
    clients = []
    body = b" " * (15 * MIB)
    head = post(body)[: -len(body)]
    for _ in range(24):
        client = socket.create_connection(address, timeout=ANSWER_S)
        with contextlib.suppress(ConnectionError):
            client.sendall(head + body[:-1])
        clients.append(client)
    try:
        return ", ".join(f"{count} × {end}" for end, count in Counter(map(_end_of, clients)).items())
    finally:
        for client in clients:
            client.close()


def cases() -> list[tuple[str, Callable[[Address], str]]]:
    """What is asked, with a name for it."""
    chat = "/v1/chat/completions"
    start = b'{"model":"%b","messages":[' % MODEL.encode()
    extra = completion(x=0)[:-2]  # up to the value of a field that is ignored
    texts = [f"stop {number:027d}" for number in range(64)]
    turns = [{"role": "user", "content": "Tell me more."}] * 2000
    long_chat = json.dumps({"model": MODEL, "messages": turns, "max_tokens": 1}).encode()

    def asks(body: bytes, path: str = "/v1/completions", *headers: str) -> Callable[[Address], str]:
        return lambda address: send(address, post(body, path, *headers))

    def asks_admin(batcher: dict[str, object]) -> Callable[[Address], str]:
        body = json.dumps({"optimization": {"batcher": batcher}}).encode()
        request = post(body, "/admin/optimization", f"authorization: Bearer {ADMIN_TOKEN}")
        return lambda address: send(address, request.replace(b"POST", b"PATCH", 1))

    def sends(*pieces: bytes, repeat: int = 1) -> Callable[[Address], str]:
        return lambda address: send(address, *pieces, repeat=repeat)

    stream = completion(stream=True, max_tokens=1000, n=8, ignore_eos=True)
    return [
        ("nothing, for 2 s", nothing),
        ("an ordinary completion of 32 tokens", asks(completion(max_tokens=32, ignore_eos=True))),
        ("1 MiB of wrong messages: `1,1,…`", asks(repeated(start, b"1,", MIB, b"1]}"), chat)),
        ("1 MiB of wrong messages: `{},{},…`", asks(repeated(start, b"{},", MIB, b"1]}"), chat)),
        ("1 MiB of empty lists in an ignored field", asks(repeated(extra + b"[", b"[],", MIB, b"1]}"))),
        ("16 MiB of empty lists in an ignored field", asks(repeated(extra + b"[", b"[],", 16 * MIB, b"1]}"))),
        ("16 MiB of token ids", asks(repeated(b'{"model":"%b","prompt":[' % MODEL.encode(), b"1,", 16 * MIB, b"1]}"))),
        ("1 MiB of nested lists", asks(extra + b"[" * (MIB // 2) + b"]" * (MIB // 2) + b"}")),
        ("a number of 1 MiB", asks(repeated(extra, b"9", MIB, b"}"))),
        ("1 MiB of one key", asks(repeated(completion()[:-1] + b",", b'"a":1,', MIB, b'"a":1}'))),
        ("16 MiB of escapes in `user`", asks(repeated(completion()[:-1] + b',"user":"', b"\\n", 16 * MIB, b'"}'))),
        ("16 MiB of spaces", asks(b" " * (16 * MIB - 100) + completion())),
        ("64 MiB of spaces", asks(b" " * (64 * MIB))),
        (
            "64 MiB of spaces in chunks",
            sends(
                chunked_head() + b"10000\r\n" + b" " * 65536 + b"\r\n", *[b"10000\r\n" + b" " * 65536 + b"\r\n"] * 1023
            ),
        ),
        ("1 MiB in chunks of one byte", sends(chunked_head(), b"1\r\n \r\n" * MIB, b"0\r\n\r\n")),
        ("a chunk with an extension of 16 MiB", sends(chunked_head(), b"1;", b"a" * (16 * MIB), b"\r\n \r\n0\r\n\r\n")),
        ("24 bodies of 15 MiB at once, unfinished", large_at_once),
        ("100,000 stop strings", asks(completion(stop=["x"] * 100_000))),
        ("64 stop strings of 32 characters, 256 tokens", asks(completion(stop=texts, max_tokens=256, ignore_eos=True))),
        ("a prompt of 1 MiB of text", asks(completion(prompt="The weather is fine. " * 50_000))),
        ("a prompt of 100 KiB of text", asks(completion(prompt="The weather is fine. " * 5_000))),
        ("a prompt of 100 KiB without a space", asks(completion(prompt="a" * 100_000))),
        ("262,144 prompts of one letter", asks(completion(prompt=["a"] * 262_144))),
        ("100 prompts, `n` 128", asks(completion(prompt=["a"] * 100, n=128))),
        (
            "a chat of 2,000 messages",
            asks(long_chat, chat),
        ),
        ("a chat of 200,000 messages", asks(json.dumps({"model": MODEL, "messages": turns * 100}).encode(), chat)),
        ("a model name of 1 MiB", asks(completion(model="x" * MIB))),
        ("1 MiB of `logit_bias`", asks(completion(logit_bias={str(number): 1 for number in range(90_000)}))),
        ("1 MiB of `tools`", asks(completion(tools=[{"type": "function", "function": {"name": "f"}}] * 20_000))),
        ("an admin call with 3,000 wrong keys", asks_admin({f"no_key_{number}": 1 for number in range(3_000)})),
        ("an admin call with a key of 60,000 letters", asks_admin({"x" * 60_000: 1})),
        ("2,000,000 headers", sends(b"GET /health HTTP/1.1\r\n", b"a: b\r\n" * 2_000_000, b"\r\n")),
        ("a header of 64 MiB", sends(b"GET /health HTTP/1.1\r\na: ", b"b" * (64 * MIB), b"\r\n\r\n")),
        ("an address of 1 MiB", sends(b"GET /", b"a" * MIB, b" HTTP/1.1\r\n\r\n")),
        ("20,000 requests in one piece", sends(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 20_000)),
        ("a length, and chunks", asks(completion(), "/v1/completions", "transfer-encoding: chunked")),
        ("`Upgrade: h2c`", asks(completion(), "/v1/completions", "upgrade: h2c", "connection: Upgrade, close")),
        ("HTTP/1.0, streamed", lambda address: send(address, post(completion(stream=True), version="1.0"))),
        ("JSON as text/plain", asks(completion(), "/v1/completions", "content-type: text/plain")),
        (f"{SLOW_CLIENTS} half heads, left", lambda address: many(address, b"GET /health HT", CLIENT_TIMEOUT_S + 2)),
        (
            f"{SLOW_CLIENTS} half bodies, left",
            lambda address: many(address, post(completion())[:-5], CLIENT_TIMEOUT_S + 2),
        ),
        (
            "8 clients that never read 8 streams of 1,000 tokens",
            lambda address: many(address, post(stream), 25.0, receive_buffer=4096),
        ),
        (f"{CANCELLED:,} streams, left after their first token", cancelled),
    ]


# Measuring


@dataclass(frozen=True, slots=True)
class Row:
    """What one request did. Memory in bytes."""

    request: str
    answer: str
    seconds: float
    stall_ms: float
    before: int
    after: int


def resident(process: psutil.Process) -> int:
    """Resident memory of the server and of the processes that it started."""
    family = [process, *process.children(recursive=True)]
    total = 0
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += member.memory_info().rss
    return total


def measure(address: Address, pid: int, only: str) -> Iterator[Row]:
    """Send each request, with the probe beside it."""
    process = psutil.Process(pid)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    prober = context.Process(target=probe, args=(address, theirs), daemon=True)
    prober.start()

    def longest() -> float:
        ours.send("report")
        return float(ours.recv())

    try:
        longest()  # it runs
        for name, ask in cases():
            if only not in name:
                continue
            before = resident(process)
            longest()
            began = time.perf_counter()
            answer = ask(address)
            seconds = time.perf_counter() - began
            time.sleep(SETTLE_S)
            yield Row(name, answer, seconds, longest() * 1e3, before, resident(process))
    finally:
        ours.send("end")
        prober.join(ANSWER_S)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| request | answer | took | longest stall of `/health` | memory before | after |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (row.request, row.answer, f"{row.seconds:.2f} s", f"{row.stall_ms:.1f} ms")
        memory = (f"{row.before / MIB:,.0f} MiB", f"{row.after / MIB:,.0f} MiB")
        lines.append(f"| {' | '.join((*cells, *memory))} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print the table; 1 if a stall was longer than the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="pytorch")
    parser.add_argument("--only", default="", help="requests whose name has this in it")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--document", type=Path, help="page to write the table into")
    options = parser.parse_args()
    rows = []
    with server(options.engine) as (address, pid):
        for row in measure(address, pid, options.only):
            rows.append(row)
            sys.stderr.write(f"{row.request}: {row.answer}, {row.stall_ms:.1f} ms\n")
    worst = max(row.stall_ms for row in rows)
    verdict = f"longest stall {worst:.1f} ms, target {TARGET_MS:.0f} ms"
    if options.json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows]) + "\n")
    else:
        sys.stdout.write(f"{table(rows)}\n\n{verdict}\n")
    if options.document is not None:
        machine = f"{platform.machine()}, {psutil.cpu_count()} processors, Python {platform.python_version()}"
        head = f"`python -m benchmarks.hostile_requests`, {time.strftime('%Y-%m-%d')}, {machine}; {verdict}."
        replace_part(options.document, "hostile requests", f"{head}\n\n{table(rows)}")
    return 0 if worst <= TARGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
