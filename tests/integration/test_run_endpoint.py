"""`run` against endpoints that do not answer as they should, as a user meets it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from muai_lab.load.completion_stream import StreamError
from muai_lab.load.sse import SseParser
from muai_lab.load.streamed_answer import StreamedAnswer
from muai_lab.request_record import RequestRecord
from tests.integration.started_command import Command

FAILING = (
    b'HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n{"error":{"message":"boom"}}'
)


@contextmanager
def endpoint(*, answers: int) -> Iterator[str]:
    """A server that answers so many requests with one token, and the others with HTTP 500."""
    left = answers
    event = orjson.dumps(
        {"choices": [{"text": "a", "finish_reason": "length"}], "usage": {"prompt_tokens": 4, "completion_tokens": 1}}
    )
    body = b"data: %b\n\ndata: [DONE]\n\n" % event
    good = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line[16:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
                )
                await reader.readexactly(length)
                left -= 1
                writer.write(good if left >= 0 else FAILING)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def run(folder: Path, url: str, *words: str) -> Command:
    return Command(
        folder, "run", f"hydra.run.dir={folder / 'run'}", "target=endpoint", f"target.url={url}", "target.model=m",
        "target.ready_timeout_s=0", "workload=fixed", "workload.output_tokens.value=1",
        "workload.prompt_tokens.value=4", "arrival=closed", "arrival.concurrency=2", "load.warmup_s=0", *words,
    )  # fmt: skip


def test_failures_are_part_of_the_verdict_and_of_the_exit_status(tmp_path: Path) -> None:
    with endpoint(answers=46) as url, run(tmp_path, url, "load.requests=64") as command:
        status = command.end()

    assert status == 1
    assert "NOT VALID, requests failed:" in command.output
    assert "most often: HTTP 500: boom; next: " in command.output
    assert "Traceback" not in command.everything
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "complete"


def test_sigterm_while_an_endpoint_does_not_answer_ends_the_run_without_a_traceback(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        run(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}/v1") as command,
    ):
        silent.accept()[0].recv(1)  # the first small request is there, and gets no answer
        command.process.send_signal(signal.SIGTERM)
        status = command.end()

    assert status == 128 + signal.SIGTERM
    assert "Traceback" not in command.everything
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "partial"


def test_the_first_small_request_keeps_to_the_request_timeout(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with run(tmp_path, url, "load.request_timeout_s=0.3") as command:
            assert command.end() == 2

    assert "no answer to a first small request within 0.3 s" in command.errors


def test_a_line_without_end_is_cut_off() -> None:
    answer = StreamedAnswer(RequestRecord(0, max_tokens=1))
    answer.head(200, "text/event-stream", "")
    piece = b"data: " + b"x" * (SseParser.LIMIT_BYTES // 4)

    for _ in range(3):
        answer.body(piece, 0)
    with pytest.raises(StreamError, match="longer than 4 MiB"):
        answer.body(piece, 0)
