"""Gain and overhead of the prefix cache.

    python -m benchmarks.prefix_cache [--engines pytorch,onnx] [--repeats 7]

Told are: the time of one lookup of a long prompt; for conversations of several turns, the time to the first token with
the cache as a share of that without; for prompts that share nothing, output tokens per second with the cache as a share
of that without. With and without take turns on one open engine (the cache is switched live), each repeat with new
prompts; shares are medians of pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in muai_lab.__main__, before torch is imported

import numpy as np

from muai_lab.settings.schema import OptimizationSettings
from muai_lab.stack.events import Event, Token
from muai_lab.stack.prefix_cache import BLOCK_TOKENS, PrefixCache
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.sharing import PATIENCE
from muai_lab.stack.stack import InferenceStack

MODEL = "qwen_chat"
LOOKUP_TOKENS = 4096
CONVERSATIONS = 2
TURNS = 8
SYSTEM_TOKENS, USER_TOKENS, ANSWER_TOKENS = 128, 48, 96
UNIQUE_REQUESTS = 96
UNIQUE_PROMPT, UNIQUE_OUTPUT = 256, 64
SLOTS = 16


class _Block:
    nbytes = 1


def lookup_us(tokens: int, repeats: int = 200) -> tuple[float, float]:
    """Return the microseconds to look up a prompt of `tokens`, all but its last block cached, and to store it."""
    random = np.random.default_rng(0)
    lookups, stores = [], []
    for _ in range(repeats):
        cache = PrefixCache(2 * tokens, block_bytes=1, seed="model")
        prompt = random.integers(0, 150_000, tokens).tolist()
        began = time.perf_counter()
        store = cache.store(prompt)
        stores.append(time.perf_counter() - began)
        cache.fill(store, [_Block()] * len(store.blocks))
        began = time.perf_counter()
        match = cache.match(prompt)
        lookups.append(time.perf_counter() - began)
        assert match.tokens == tokens - BLOCK_TOKENS
    return statistics.median(lookups) * 1e6, statistics.median(stores) * 1e6


class Bench:
    """One open engine and a supply of prompts that were never asked before."""

    def __init__(self, engine: str) -> None:
        optimization = OptimizationSettings.model_validate(
            {"engine_preference": [engine], "batcher": {"max_batch_size": SLOTS}, "cache": {"max_memory_mb": 512}}
        )
        self.said: dict[str, list[int]] = {}
        self.stack = InferenceStack.open(optimization, MODEL, observers=lambda _engine: [self])
        self._random = np.random.default_rng(1)
        self._asked = 0

    def observe(self, events: Sequence[Event]) -> None:
        """Keep what was answered: the next turn carries it."""
        for event in events:
            if isinstance(event, Token):
                self.said.setdefault(event.request_id, []).append(event.token)

    def tokens(self, count: int) -> list[int]:
        """Random prompt tokens."""
        return self._random.integers(10, 2000, count).tolist()

    async def ask(self, prompt: list[int], output: int) -> tuple[float, list[int]]:
        """Seconds to the first token of a request that runs to its end, and its answer."""
        self._asked += 1
        name = str(self._asked)
        began = time.perf_counter()
        first = 0.0
        async for _ in self.stack.submit(GenerationRequest(name, prompt, output, ignore_eos=True)):
            first = first or time.perf_counter() - began
        return first, self.said.pop(name)

    async def conversation(self) -> list[float]:
        """Times to the first token of all turns; each carries all questions and answers before it."""
        history, ttft = self.tokens(SYSTEM_TOKENS), []
        for _ in range(TURNS):
            history += self.tokens(USER_TOKENS)
            first, answer = await self.ask(history, ANSWER_TOKENS)
            ttft.append(first)
            history += answer
        return ttft

    async def chat_ttft(self) -> float:
        """Median time to the first token over conversations that run side by side, all turns, the first included."""
        found = await asyncio.gather(*[self.conversation() for _ in range(CONVERSATIONS)])
        return statistics.median(time for times in found for time in times)

    async def unique_rate(self) -> float:
        """Output tokens per second of prompts that share nothing, once the stack had time to see that they do not."""
        await self.ask_unique(PATIENCE, 1)
        began = time.perf_counter()
        await self.ask_unique(UNIQUE_REQUESTS, UNIQUE_OUTPUT)
        return UNIQUE_REQUESTS * UNIQUE_OUTPUT / (time.perf_counter() - began)

    async def ask_unique(self, requests: int, output: int) -> None:
        """Ask prompts that share nothing, as many at once as there are slots."""
        prompts = iter([self.tokens(UNIQUE_PROMPT) for _ in range(requests)])

        async def client() -> None:
            for prompt in prompts:
                await self.ask(prompt, output)

        await asyncio.gather(*[client() for _ in range(SLOTS)])

    async def pairs(self, measure: Callable[[], Awaitable[float]], repeats: int) -> list[tuple[float, float]]:
        """(with, without) of each repeat; the order within a pair alternates."""
        found = []
        for repeat in range(repeats):
            pair = {}
            for on in (True, False) if repeat % 2 else (False, True):
                await self.stack.reconfigure({"cache": {"enabled": on}})
                pair[on] = await measure()
            found.append((pair[True], pair[False]))
        return found


async def measure(engine: str, repeats: int) -> None:
    """Print the lines of one engine."""
    bench = Bench(engine)
    try:
        await bench.pairs(bench.chat_ttft, 1)  # warm-up
        for name, what, unit, scale in (
            (f"chat of {TURNS} turns, median TTFT", bench.chat_ttft, "ms", 1e3),
            ("unique prompts, throughput", bench.unique_rate, "tokens/s", 1.0),
        ):
            found = await bench.pairs(what, repeats)
            share = statistics.median(on / off for on, off in found)
            on, off = (scale * statistics.median(column) for column in zip(*found, strict=True))
            sys.stdout.write(f"{engine:8s} {name}: {on:.1f} {unit} with, {off:.1f} without the cache: {share:.3f} x\n")
            sys.stdout.flush()
    finally:
        await bench.stack.close()


def main() -> int:
    """Measure all engines asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="pytorch,onnx")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    found, stored = lookup_us(LOOKUP_TOKENS)
    sys.stdout.write(f"lookup of {LOOKUP_TOKENS} tokens: {found:.0f} µs, storing them: {stored:.0f} µs\n")
    for engine in args.engines.split(","):
        asyncio.run(measure(engine, args.repeats))
    return 0


if __name__ == "__main__":
    sys.exit(main())
