"""A server that answers each request with prepared bytes, right or wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

Answer = bytes | Callable[[dict[str, Any]], bytes]


def stream(*payloads: bytes, head: bytes = b"text/event-stream") -> bytes:
    """A complete streamed answer."""
    body = b"".join(b"data: " + payload + b"\n\n" for payload in payloads)
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (head, len(body), body)


def status(code: int, body: bytes, kind: bytes = b"application/json") -> bytes:
    """An answer other than 200."""
    return b"HTTP/1.1 %d X\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (code, kind, len(body), body)


def token(completed: int, finish_reason: str | None = None) -> bytes:
    """One chunk of `/v1/completions` with continuous usage."""
    return orjson.dumps(
        {
            "choices": [{"index": 0, "text": " a", "finish_reason": finish_reason}],
            "usage": {"prompt_tokens": 1, "completion_tokens": completed},
        }
    )


GOOD = stream(token(1), token(2, "length"), b"[DONE]")
SILENCE = b""  # the connection stays open and nothing comes
HANG_UP = b"hang up"  # the connection is closed without a byte


@dataclass
class ScriptedServer:
    """Gives the answers in order, and the last one for all further requests."""

    answers: list[Answer]
    requests: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0

    async def __aenter__(self) -> ScriptedServer:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._answer_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client, or the test, is done
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lengths = [line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-length")]
        body = await reader.readexactly(int(lengths[0]) if lengths else 0)
        self.heads.append(head)
        self.requests.append(orjson.loads(body) if body else {})
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if callable(answer):
            answer = answer(self.requests[-1])
        if answer == HANG_UP:
            return False
        writer.write(answer.removesuffix(HANG_UP))
        await writer.drain()
        return not answer.endswith(HANG_UP)
