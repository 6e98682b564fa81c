"""A real stack on a toy engine, and an ASGI client without sockets, for the tests of the server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from muai_lab.engines.base import EngineInfo, PrefillChunk, StepEngine
from muai_lab.engines.selection import Candidate, EngineCandidates
from muai_lab.models.registry import ModelSource
from muai_lab.server.app import create_app
from muai_lab.server.host import ModelHost
from muai_lab.server.reading import RequestReader
from muai_lab.settings.monitoring import ServerSettings
from muai_lab.settings.schema import BatcherSettings, OptimizationSettings
from muai_lab.stack.stack import InferenceStack

CONTEXT = 64
END = 0  # token id that ends a sequence
DEADLINE_S = 200.0


class ByteTokenizer:
    """One token per UTF-8 byte; byte 0 ends a sequence."""

    vocab_size = 256
    eos_token_ids = frozenset({END})

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def at_least(self, text: str) -> int:
        return len(text)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return self.encode("".join(f"{message['role']}:{message['content']}\n" for message in messages))

    def stream(self) -> ByteDecoder:
        return ByteDecoder()


class ByteDecoder:
    def __init__(self) -> None:
        self._bytes = b""

    def push(self, token_id: int) -> str:
        self._bytes += bytes([token_id])
        try:
            text = self._bytes.decode()
        except UnicodeDecodeError:
            return ""
        self._bytes = b""
        return text

    def flush(self) -> str:
        return self._bytes.decode(errors="replace")


class ParrotEngine(StepEngine):
    """Repeats its prompt, upper case, over and over. Steps wait while `gate` is closed; `broken` fails the next one."""

    def __init__(self, slots: int = 4, context: int = CONTEXT) -> None:
        self.info = EngineInfo("parrot", "1", "cpu", "fp32", context)
        self.slots = slots
        self.eos_token_ids = frozenset({END})
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False
        self.closed = False
        self._said: dict[int, tuple[bytes, int]] = {}

    def prefill(self, chunks: Sequence[PrefillChunk]) -> list[int | None]:
        for chunk in chunks:
            self._said[chunk.slot] = (bytes(chunk.tokens).upper(), 0)
        return list(self.decode([chunk.slot for chunk in chunks]))

    def decode(self, slots: Sequence[int]) -> list[int]:
        self.gate.wait(DEADLINE_S)
        return self.speak(slots)

    def speak(self, slots: Sequence[int]) -> list[int]:
        if self.broken:
            raise RuntimeError("the parrot is dead")
        tokens = []
        for slot in slots:
            text, at = self._said[slot]
            tokens.append(text[at % len(text)])
            self._said[slot] = (text, at + 1)
        return tokens

    def release(self, slot: int) -> None:
        self._said.pop(slot, None)

    def close(self) -> None:
        self.closed = True


def parrot_stack(
    engine: ParrotEngine, *, queue_capacity: int | None = 8, observers: Sequence[Any] = ()
) -> InferenceStack:
    source = ModelSource("parrot", None, None, "embedded", "0" * 64, False, "parrot")
    optimization = OptimizationSettings(batcher=BatcherSettings(max_batch_size=engine.slots))
    candidates = EngineCandidates(
        [
            Candidate("vllm", refuse=lambda: "not installed", make=lambda: engine),
            Candidate("parrot", refuse=lambda: None, make=lambda: engine),
        ],
        model="parrot",
    )
    return InferenceStack(
        "parrot",
        source,
        ByteTokenizer(),  # type: ignore[arg-type]
        candidates,
        optimization,
        queue_capacity=queue_capacity,
        observers=lambda _engine: observers,
    )


@dataclass
class Answer:
    """What an ASGI application sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; its shape is checked, so that every test of an error checks it."""
        document = self.json
        assert set(document) == {"error"}
        error = document["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return dict(error)

    @property
    def events(self) -> list[Any]:
        """The stream's events in order; the last is the string `[DONE]` when it ended well."""
        texts = self.body.decode().split("\n\n")
        assert texts.pop() == ""
        assert all(text.startswith("data: ") for text in texts)
        data = [text.removeprefix("data: ") for text in texts]
        return [item if item == "[DONE]" else orjson.loads(item) for item in data]


class Call:
    """One request to an ASGI application, which a test can watch and hang up on."""

    def __init__(
        self,
        app: Any,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        client: str = "127.0.0.1",
    ):
        self.answer = Answer()
        self._app = app
        path, _, query = path.partition("?")
        self._scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "client": (client, 50000),
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        self._pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]
        self._gone = asyncio.Event()
        self._changed = asyncio.Event()

    async def run(self) -> Answer:
        await self._app(self._scope, self._receive, self._send)
        return self.answer

    def hang_up(self) -> None:
        self._gone.set()

    async def until(self, condition: Callable[[Answer], bool]) -> None:
        """Wait until the answer so far meets the condition."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition(self.answer):
                self._changed.clear()
                await self._changed.wait()

    async def _receive(self) -> dict[str, Any]:
        if self._pieces:
            piece = self._pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not self.answer.status
            self.answer.status = message["status"]
            self.answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            assert not self.answer.complete
            self.answer.chunks.append(message["body"])
            self.answer.complete = not message.get("more_body", False)
        self._changed.set()


class Bench:
    """A ready server over one parrot, without sockets. Use it within `asyncio.run`."""

    def __init__(
        self,
        *,
        engine: ParrotEngine | None = None,
        queue_capacity: int | None = 8,
        settings: ServerSettings | None = None,
        observers: Sequence[Any] = (),
        admin_token: str | None = None,
    ) -> None:
        self.engine = engine or ParrotEngine()
        self.stack = parrot_stack(self.engine, queue_capacity=queue_capacity, observers=observers)
        self.host = ModelHost(["parrot"], lambda name: self.stack)
        self.reader = RequestReader()
        self.app = create_app(self.host, self.reader, settings or ServerSettings(), created=1, admin_token=admin_token)

    async def __aenter__(self) -> Bench:
        await self.host.preload(["parrot"])
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.engine.gate.set()
        self.reader.close()
        await self.host.close()

    async def call(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, **more: Any
    ) -> Answer:
        async with asyncio.timeout(DEADLINE_S):
            return await Call(self.app, method, path, body, headers, **more).run()

    def start(self, path: str, **fields: Any) -> tuple[Call, asyncio.Task[Answer]]:
        """A request under way."""
        call = Call(self.app, "POST", path, orjson.dumps({"model": "parrot", **fields}))
        return call, asyncio.create_task(call.run())

    async def complete(self, **fields: Any) -> Answer:
        return await self.call("POST", "/v1/completions", orjson.dumps({"model": "parrot", **fields}))

    async def chat(self, **fields: Any) -> Answer:
        return await self.call("POST", "/v1/chat/completions", orjson.dumps({"model": "parrot", **fields}))

    async def load(self, *, running: int, waiting: int = 0) -> None:
        """Wait until so many run and so many wait."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                counts = self.stack.counts()
                if (counts.running, counts.waiting) == (running, waiting):
                    return
                await asyncio.sleep(0)


def in_bench(work: Callable[[Bench], Awaitable[Any]], **options: Any) -> Any:
    """Run `work` against a fresh bench and return what it returns."""

    async def run() -> Any:
        async with Bench(**options) as bench:
            return await work(bench)

    return asyncio.run(run())
