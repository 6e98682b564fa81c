"""All engines on the same ragged load, in one run: output tokens/s of the whole stack at 32 streams.

    python -m benchmarks.engines [--engines pytorch,onnx,deepspeed,vllm] [--repeats 3] [--json]

Every engine serves the embedded chat model in fp32 and stays open; the engines take turns, so a slow moment of the
machine meets all of them. 128 requests, prompts of 16 to 256 tokens, outputs of 16 to 128, at most 32 at a time. The
last column is the ratio to the first engine, from the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from contextlib import AsyncExitStack

import numpy as np

from muai_lab.settings.resolve import load_settings
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.stack import InferenceStack

STREAMS = 32
REQUESTS = 128


def open_stack(engine: str) -> InferenceStack:
    """The embedded chat model on one engine, in fp32. `onnx-int8` is ONNX Runtime with quantisation."""
    name, _, variant = engine.partition("-")
    settings = load_settings(
        environ={},
        overrides={
            "optimization.engine_preference": [name],
            "optimization.deepspeed.dtype": "fp32",
            "optimization.vllm.dtype": "fp32",
            "optimization.onnx.enable_quantization": variant == "int8",
            "optimization.batcher.max_batch_size": STREAMS,
            # Every prompt is new, so a prefix cache could only cost: it is off for the engines that have one.
            "optimization.cache.enabled": False,
        },
    )
    return InferenceStack.open(settings.settings.optimization, "qwen_chat")


async def tokens_per_s(stack: InferenceStack, prompts: list[list[int]], wanted: list[int], round_name: str) -> float:
    """Output tokens per second over all requests, submitted at once; the scheduler runs `STREAMS` at a time."""

    async def one(index: int) -> int:
        request = GenerationRequest(f"{round_name}-{index}", prompts[index], wanted[index], ignore_eos=True)
        return sum([delta.tokens async for delta in stack.submit(request)])

    began = time.perf_counter()
    counts = await asyncio.gather(*(one(index) for index in range(len(prompts))))
    if counts != wanted:
        raise RuntimeError("an engine produced another number of tokens than was asked for")
    return sum(counts) / (time.perf_counter() - began)


async def measure(engines: list[str], repeats: int) -> dict[str, list[float]]:
    """Tokens/s of every engine in every round, after one warm-up round each."""
    seen: dict[str, list[float]] = {engine: [] for engine in engines}
    async with AsyncExitStack() as opened:
        stacks = {}
        for engine in engines:
            stacks[engine] = await asyncio.to_thread(open_stack, engine)
            opened.push_async_callback(stacks[engine].close)
        random = np.random.default_rng(0)
        tokenizer = next(iter(stacks.values())).tokenizer
        prompts = [tokenizer.prompt_of(int(size), random)[1] for size in random.integers(16, 257, size=REQUESTS)]
        wanted = [int(size) for size in random.integers(16, 129, size=REQUESTS)]
        for repeat in range(-1, repeats):
            for engine, stack in stacks.items():
                rate = await tokens_per_s(stack, prompts, wanted, f"{engine}-{repeat}")
                if repeat >= 0:
                    seen[engine].append(rate)
    return seen


def main() -> None:
    """Measure and print."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `python -m muai_lab` sets it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="vllm,pytorch,onnx,onnx-int8,deepspeed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    engines = options.engines.split(",")
    seen = asyncio.run(measure(engines, options.repeats))
    medians = {engine: statistics.median(values) for engine, values in seen.items()}
    first = medians[engines[0]]
    if options.json:
        sys.stdout.write(json.dumps({"tokens_per_s": seen, "median": medians}) + "\n")
        return
    for engine, values in seen.items():
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        sys.stdout.write(
            f"{engine:<10} {medians[engine]:>8,.0f} tokens/s  ({spread:>16})  {medians[engine] / first:.2f}\n"
        )


if __name__ == "__main__":
    main()
