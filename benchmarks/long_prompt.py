"""The stall of running streams by one long prompt, with prompts computed in pieces and whole.

    python -m benchmarks.long_prompt [--engines pytorch,onnx] [--prompt 4096] [--pieces 128,512,8192] [--repeats 5]

Eight streams of the embedded chat model decode; then a prompt of many tokens arrives. The results are the longest gap
between two tokens of a running stream meanwhile, and the time to the first token of the prompt itself (medians of
repeats; the piece sizes alternate).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import sys
import time
from collections.abc import Sequence

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in muai_lab.__main__, before torch is imported

import numpy as np

from muai_lab.settings.schema import OptimizationSettings
from muai_lab.stack.events import Event, Token
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.stack import InferenceStack

MODEL = "qwen_chat"
STREAMS = 8
LEAD_TOKENS = 20  # of each stream before the long prompt comes


class TokenTimes:
    """An observer that keeps when each request's tokens came."""

    def __init__(self) -> None:
        self.at: dict[str, list[float]] = {}

    def observe(self, events: Sequence[Event]) -> None:
        """Keep the times of tokens."""
        for event in events:
            if isinstance(event, Token):
                self.at.setdefault(event.request_id, []).append(event.at)


async def longest_stall(stack: InferenceStack, times: TokenTimes, prompt_tokens: int, seed: int) -> tuple[float, float]:
    """Longest gap of a running stream while the long prompt is computed, and that prompt's own TTFT, in seconds."""
    times.at.clear()
    random = np.random.default_rng(seed)
    streams = [
        stack.submit(GenerationRequest(f"s{number}", random.integers(10, 2000, 32).tolist(), 4000, ignore_eos=True))
        for number in range(STREAMS)
    ]
    for stream in streams:
        while (await anext(stream)).output_tokens < LEAD_TOKENS:
            pass
    began = time.monotonic()
    prompt = random.integers(10, 2000, prompt_tokens).tolist()
    async for _ in stack.submit(GenerationRequest("long", prompt, 1, ignore_eos=True)):
        pass
    ended = times.at["long"][0]
    for stream in streams:
        stream.cancel()
    while stack.counts().running:  # noqa: ASYNC110 - the stack tells nobody when its engine has let go of the last
        await asyncio.sleep(0.01)
    gaps = [
        after - before
        for name, at in times.at.items()
        if name != "long"
        for before, after in itertools.pairwise(at)
        if after >= began and before <= ended
    ]
    return max(gaps), ended - began


async def measure(engine: str, pieces: Sequence[int], prompt_tokens: int, repeats: int) -> None:
    """Print a line for each piece size."""
    times = TokenTimes()
    optimization = OptimizationSettings.model_validate(
        {"engine_preference": [engine], "cache": {"enabled": False}, "batcher": {"max_batch_size": STREAMS + 1}}
    )
    stack = InferenceStack.open(optimization, MODEL, observers=lambda _engine: [times])
    found: dict[int, list[tuple[float, float]]] = {size: [] for size in pieces}
    await longest_stall(stack, times, prompt_tokens, seed=0)  # warm-up
    for repeat in range(repeats):
        for size in pieces:
            await stack.reconfigure({"batcher": {"max_prefill_tokens": size}})
            found[size].append(await longest_stall(stack, times, prompt_tokens, seed=repeat + 1))
    for size, results in found.items():
        stall, ttft = (statistics.median(column) * 1e3 for column in zip(*results, strict=True))
        sys.stdout.write(f"{engine:8s} pieces of {size:5d}: longest gap {stall:7.1f} ms, its own TTFT {ttft:7.1f} ms\n")
    await stack.close()


def main() -> int:
    """Measure all engines asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="pytorch,onnx")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the long prompt")
    parser.add_argument("--pieces", default="128,512,8192", help="max_prefill_tokens to compare")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for engine in args.engines.split(","):
        asyncio.run(measure(engine, [int(size) for size in args.pieces.split(",")], args.prompt, args.repeats))
    return 0


if __name__ == "__main__":
    sys.exit(main())
