"""Overhead of our layers over vLLM: output tokens/s of bare AsyncLLM, of our engine over it, and of the whole stack.

    python -m benchmarks.vllm_overhead [--repeats 7] [--streams 32] [--json]

Each arm has its own vLLM with the same arguments, and an idle one takes no processor time. They alternate in one
process on the same ragged requests (other prompts every time, so that no prefix is cached). The result is the median of
the ratios of neighbours, since the machine is noisy. The bare arm has token ids in and out, no tokenizer, no
statistics. The bound of either ratio is 0.95.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from muai_lab.engines.base import GREEDY
from muai_lab.engines.vllm.arguments import engine_arguments
from muai_lab.engines.vllm.engine import VllmEngine
from muai_lab.engines.vllm.environment import EngineLog, start_environment
from muai_lab.models.registry import resolve_model
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.stack import InferenceStack

MODEL = "qwen_chat"
VOCABULARY = 2000
Request = tuple[str, list[int], int]
Arm = Callable[[Request], Awaitable[int]]


def requests(count: int, seed: int) -> list[Request]:
    """Name, prompt of 16 to 256 tokens, 16 to 128 tokens to produce."""
    draw = random.Random(seed)
    return [
        (
            f"{seed}-{number}",
            [draw.randrange(100, VOCABULARY) for _ in range(draw.randint(16, 256))],
            draw.randint(16, 128),
        )
        for number in range(count)
    ]


class Bare:
    """AsyncLLM as it is."""

    def __init__(self, settings: OptimizationSettings, streams: int) -> None:
        arguments = engine_arguments(resolve_model(MODEL), settings, slots=streams, cpu=True)
        self._log = EngineLog()
        with start_environment(self._log):
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            self._llm: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments.keywords, disable_log_stats=True))

    async def ask(self, request: Request) -> int:
        """One request."""
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        name, prompt, count = request
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=count,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
        )
        produced = 0
        async for output in self._llm.generate(tokens_input(prompt), parameters, name):
            produced += len(output.outputs[0].token_ids)
        return produced

    async def close(self) -> None:
        """End its processes."""
        await asyncio.to_thread(self._llm.shutdown, 15.0)
        self._llm = None
        self._log.close()
        gc.collect()


def engine_arm(engine: VllmEngine) -> Arm:
    """One request on our engine."""

    async def ask(request: Request) -> int:
        name, prompt, count = request
        produced = 0
        async for report in engine.generate(name, prompt, GREEDY, max_tokens=count, ignore_eos=True):
            produced += len(report.tokens)
        return produced

    return ask


def stack_arm(stack: InferenceStack) -> Arm:
    """One request on the stack: admission, our engine in its thread, events, text."""

    async def ask(request: Request) -> int:
        name, prompt, count = request
        produced = 0
        async for delta in stack.submit(GenerationRequest(name, prompt, count, ignore_eos=True)):
            produced += delta.tokens
        return produced

    return ask


async def tokens_per_s(ask: Arm, load: Sequence[Request], streams: int) -> float:
    """Output tokens/s over the whole load, `streams` requests at a time."""
    waiting = iter(load)

    async def stream() -> int:
        return sum([await ask(request) for request in waiting])

    began = time.perf_counter()
    produced = sum(await asyncio.gather(*(stream() for _ in range(streams))))
    return produced / (time.perf_counter() - began)


async def measure(repeats: int, streams: int, count: int) -> dict[str, list[float]]:
    """Tokens/s of every turn, by arm."""
    settings = OptimizationSettings.model_validate(
        {
            "engine_preference": ["vllm"],
            "fallback_on_error": False,
            "batcher": {"max_batch_size": streams, "batch_timeout_ms": 0},
            "cache": {"max_memory_mb": 512},
        }
    )
    bare = Bare(settings, streams)
    engine = VllmEngine(resolve_model(MODEL), settings, slots=streams)
    await engine.start()
    stack = await asyncio.to_thread(InferenceStack.open, settings, MODEL)
    arms = {"bare": bare.ask, "engine": engine_arm(engine), "stack": stack_arm(stack)}
    seen: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats + 1):
        load = requests(count, turn)
        for name in sorted(arms, reverse=turn % 2 == 0):
            speed = await tokens_per_s(arms[name], load, streams)
            if turn:  # the first is for memory and kernels that are used for the first time
                seen[name].append(speed)
    await stack.close()
    await engine.close()
    await bare.close()
    return seen


def main() -> None:
    """Run the arms alternately and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seen = asyncio.run(measure(options.repeats, options.streams, options.requests))
    ratios = {
        name: statistics.median(one / other for one, other in zip(seen[name], seen["bare"], strict=True))
        for name in ("engine", "stack")
    }
    if options.json:
        sys.stdout.write(json.dumps({"tokens_per_s": seen, "ratio": ratios}) + "\n")
        return
    for name, values in seen.items():
        shown = ", ".join(f"{value:,.0f}" for value in values)
        sys.stdout.write(f"{name:<7} {statistics.median(values):>8,.0f} output tokens/s (of {shown})\n")
    for name, ratio in ratios.items():
        sys.stdout.write(f"{name:<7} {ratio:>8.1%} of bare vLLM\n")


if __name__ == "__main__":
    main()
