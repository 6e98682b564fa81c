"""Overhead of our layer over DeepSpeed: output tokens/s of the DeepSpeed engine against the PyTorch engine, one rank.

    python -m benchmarks.deepspeed_overhead [--repeats 7] [--streams 32] [--json]

Both engines step the embedded chat model in fp32 through the same ragged load: a sequence that has its tokens leaves,
and the next prompt takes its slot. They alternate in one process, so that other work on the machine affects both; the
result is the median of the ratios of neighbours. The bound is 0.95.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import deque

from muai_lab.engines.base import PrefillChunk, StepEngine
from muai_lab.engines.catalogue import ENGINES
from muai_lab.models.registry import resolve_model
from muai_lab.settings.schema import OptimizationSettings

VOCABULARY = 2000


def requests(count: int, seed: int = 0) -> list[tuple[list[int], int]]:
    """Prompts of 16 to 256 tokens, each with 16 to 128 tokens to produce."""
    draw = random.Random(seed)
    return [
        ([draw.randrange(VOCABULARY) for _ in range(draw.randint(16, 256))], draw.randint(16, 128))
        for _ in range(count)
    ]


def tokens_per_s(engine: StepEngine, load: list[tuple[list[int], int]]) -> float:
    """Output tokens/s over the whole load, `engine.slots` sequences at a time."""
    waiting = deque(load)
    free = list(range(engine.slots))
    left: dict[int, int] = {}
    produced = 0
    began = time.perf_counter()
    while waiting or left:
        if left:
            running = list(left)
            engine.decode(running)
            produced += len(running)
            for slot in running:
                left[slot] -= 1
                if not left[slot]:
                    del left[slot]
                    engine.release(slot)
                    free.append(slot)
        joining = [(free.pop(), *waiting.popleft()) for _ in range(min(len(free), len(waiting)))]
        if joining:
            engine.prefill([PrefillChunk(slot, prompt) for slot, prompt, _ in joining])
            produced += len(joining)
            left.update({slot: count - 1 for slot, _, count in joining})
    return produced / (time.perf_counter() - began)


def main() -> None:
    """Run both arms alternately and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    settings = OptimizationSettings.model_validate({"deepspeed": {"dtype": "fp32"}, "pytorch": {"dtype": "fp32"}})
    source = resolve_model("qwen_chat")
    engines: dict[str, StepEngine] = {}
    for name in ("pytorch", "deepspeed"):
        engine = ENGINES[name].make(settings, source, slots=options.streams)
        if not isinstance(engine, StepEngine):
            raise TypeError(f"{name} is not a step engine")
        engines[name] = engine
    load = requests(options.requests)
    seen: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        tokens_per_s(engine, load[: options.streams])  # first use of memory and kernels
    for turn in range(options.repeats):
        for name in sorted(engines, reverse=turn % 2 == 0):
            seen[name].append(tokens_per_s(engines[name], load))
    for engine in engines.values():
        engine.close()
    ratios = [one / other for one, other in zip(seen["deepspeed"], seen["pytorch"], strict=True)]
    result = {
        "tokens_per_s": seen,
        "median": {name: statistics.median(values) for name, values in seen.items()},
        "ratio": statistics.median(ratios),
    }
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    for name, values in seen.items():
        shown = ", ".join(f"{value:,.0f}" for value in values)
        sys.stdout.write(f"{name:<10} {statistics.median(values):>8,.0f} output tokens/s (of {shown})\n")
    sys.stdout.write(f"DeepSpeed  {result['ratio']:>8.1%} of PyTorch, one rank (median of neighbours)\n")


if __name__ == "__main__":
    main()
