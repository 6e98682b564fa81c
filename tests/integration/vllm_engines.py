"""A vLLM engine of tests: on a loop in a thread of its own, started again where a test has killed it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

import psutil

from muai_lab.engines.base import GREEDY, Sampling, StreamedTokens
from muai_lab.engines.vllm.engine import VllmEngine
from muai_lab.engines.vllm.processes import alive
from muai_lab.errors import EngineError
from muai_lab.models.registry import ModelSource
from muai_lab.settings.schema import OptimizationSettings

T = TypeVar("T")

SLOTS = 8
PROMPT = tuple(range(100, 140))
OUTPUT_TOKENS = 24


class LoopThread:
    """A loop in a thread of its own, as the stack's driver has it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=500)

    def close(self) -> None:
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Engines:
    """The engine of this module; a new one after it has died."""

    def __init__(self, loop: LoopThread, source: ModelSource) -> None:
        self._loop, self._source = loop, source
        self._engine: VllmEngine | None = None

    def get(self) -> VllmEngine:
        if self._engine is not None and not self._lives(self._engine):
            self.close()
        if self._engine is None:
            settings = OptimizationSettings.model_validate({"cache": {"max_memory_mb": 256}})
            engine = VllmEngine(self._source, settings, slots=SLOTS)
            self._loop.run(engine.start())
            self._engine = engine
        return self._engine

    def close(self) -> None:
        """Close it, and see that nothing of it stays."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        processes = running(engine.pids)
        self._loop.run(engine.close())
        self._loop.run(engine.close())
        assert not [process for process in processes if alive(process)]

    def _lives(self, engine: VllmEngine) -> bool:
        try:
            self._loop.run(engine.check())
        except EngineError:
            return False
        return True


def running(pids: Sequence[int]) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


_names = iter(range(1_000_000))


def ask(
    engine: VllmEngine,
    prompt: Sequence[int] = PROMPT,
    *,
    max_tokens: int = OUTPUT_TOKENS,
    ignore_eos: bool = True,
    sampling: Sampling = GREEDY,
) -> AsyncIterator[StreamedTokens]:
    return engine.generate(f"r{next(_names)}", prompt, sampling, max_tokens=max_tokens, ignore_eos=ignore_eos)


async def reports(stream: AsyncIterator[StreamedTokens]) -> list[StreamedTokens]:
    return [report async for report in stream]


def tokens_of(seen: Sequence[StreamedTokens]) -> list[int]:
    return [token for report in seen for token in report.tokens]


async def has_open(engine: VllmEngine, count: int) -> None:
    """Wait until so many requests are at the engine."""
    while engine._llm.get_num_unfinished_requests() != count:  # noqa: ASYNC110 (vLLM tells nobody)
        await asyncio.sleep(0.01)
