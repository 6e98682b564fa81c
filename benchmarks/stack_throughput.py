"""The stack on PyTorch against Transformers' own `generate`: ragged load, one request alone, and the scheduler's share.

    python -m benchmarks.stack_throughput [--repeats 5] [--requests 128] [--streams 32] [--json]

Ragged load: prompts of 16-256 tokens, outputs of 16-128, embedded chat model, greedy. The stack gets its requests
through its event loop, `--streams` at a time. `generate` gets the same requests in static batches of the same size,
left-padded, each batch to its longest output, of which only the requested tokens count. Alone: time per token after the
first, from one request at a time. Both arms alternate in one process: on a machine with other work only the ratio of
neighbours is meaningful, so the result is the median of those ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in muai_lab.__main__, before torch is imported

import numpy as np
import torch

from muai_lab.models.registry import resolve_model
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.scheduler import Scheduler
from muai_lab.stack.stack import InferenceStack

MODEL = "qwen_chat"
ALONE_PROMPT, ALONE_OUTPUT = 64, 64  # tokens
OVERHEAD_STEPS = 500


def ragged_requests(count: int, seed: int = 0) -> list[GenerationRequest]:
    """The requests, the same for both arms."""
    random = np.random.default_rng(seed)
    return [
        GenerationRequest(
            str(index),
            random.integers(10, 2000, random.integers(16, 257)).tolist(),
            max_tokens=int(random.integers(16, 129)),
            ignore_eos=True,
        )
        for index in range(count)
    ]


class Stack:
    """The arm under test."""

    def __init__(self, streams: int) -> None:
        optimization = OptimizationSettings.model_validate(
            {
                "engine_preference": ["pytorch"],
                "cache": {"enabled": False},
                "pytorch": {"device": "cpu"},
                "batcher": {"max_batch_size": streams},
            }
        )
        self._stack = InferenceStack.open(optimization, MODEL)
        self._streams = streams

    async def serve(self, requests: Sequence[GenerationRequest]) -> None:
        """Run the requests to their end, a fixed number at a time."""
        queue = iter(requests)

        async def stream() -> None:
            for request in queue:
                async for _ in self._stack.submit(request):
                    pass

        await asyncio.gather(*(stream() for _ in range(self._streams)))

    async def close(self) -> None:
        """Free the engine."""
        await self._stack.close()


class Generate:
    """Transformers' `generate` over static batches."""

    def __init__(self, streams: int) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(resolve_model(MODEL).path)
        self._streams = streams

    @torch.inference_mode()
    def serve(self, requests: Sequence[GenerationRequest]) -> None:
        """Run the requests to the end of each batch's longest."""
        for begin in range(0, len(requests), self._streams):
            batch = requests[begin : begin + self._streams]
            longest = max(len(request.prompt) for request in batch)
            ids = torch.zeros((len(batch), longest), dtype=torch.long)
            mask = torch.zeros((len(batch), longest), dtype=torch.long)
            for row, request in enumerate(batch):
                ids[row, longest - len(request.prompt) :] = torch.tensor(request.prompt)
                mask[row, longest - len(request.prompt) :] = 1
            most = max(request.max_tokens for request in batch)
            self._model.generate(
                ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False, pad_token_id=3
            )


async def timed(work: Callable[[], Any]) -> float:
    """Seconds that the work takes; a coroutine is awaited."""
    began = time.perf_counter()
    result = work()
    if asyncio.iscoroutine(result):
        await result
    return time.perf_counter() - began


def alone(tokens: int) -> list[GenerationRequest]:
    """Return one request of `tokens` output tokens."""
    return [GenerationRequest("alone", list(range(100, 100 + ALONE_PROMPT)), tokens, ignore_eos=True)]


async def time_per_token(serve: Callable[[Sequence[GenerationRequest]], Any]) -> float:
    """Seconds per output token after the first, of a request that runs alone."""
    one, many = await timed(lambda: serve(alone(1))), await timed(lambda: serve(alone(ALONE_OUTPUT)))
    return (many - one) / (ALONE_OUTPUT - 1)


def scheduler_overhead(streams: int) -> float:
    """Seconds that planning and completing one step of a full batch takes, without an engine."""
    scheduler = Scheduler(BatchLimits(max_batch_size=streams), slots=streams)
    for index in range(streams):
        scheduler.add(GenerationRequest(str(index), [1], OVERHEAD_STEPS + 1), 0.0)
    plan = scheduler.plan(0.0)
    scheduler.complete({chunk.slot: 1 for chunk in plan.prefill}, began=0.0, now=0.0)
    began = time.perf_counter()
    for _ in range(OVERHEAD_STEPS):
        plan = scheduler.plan(0.0)
        scheduler.complete(dict.fromkeys(plan.decode, 1), began=0.0, now=0.0)
        scheduler.take_events()
    return (time.perf_counter() - began) / OVERHEAD_STEPS


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run both arms alternately."""
    stack, generate = Stack(options.streams), Generate(options.streams)
    requests = ragged_requests(options.requests)
    tokens = sum(request.max_tokens for request in requests)
    arms: dict[str, Callable[[Sequence[GenerationRequest]], Any]] = {"stack": stack.serve, "generate": generate.serve}
    ragged: dict[str, list[float]] = {name: [] for name in arms}
    single: dict[str, list[float]] = {name: [] for name in arms}
    for serve in arms.values():
        await timed(lambda serve=serve: serve(requests[: options.streams]))  # type: ignore[misc]
    for _ in range(options.repeats):
        for name, serve in arms.items():
            ragged[name].append(tokens / await timed(lambda serve=serve: serve(requests)))  # type: ignore[misc]
    for _ in range(4 * options.repeats):
        for name, serve in arms.items():
            single[name].append(1000 * await time_per_token(serve))
    await stack.close()
    return {
        "ragged_tokens_per_s": ragged,
        "ragged_ratio": median_ratio(ragged["stack"], ragged["generate"]),
        "alone_ms_per_token": single,
        "alone_ratio": median_ratio(single["stack"], single["generate"]),
        "scheduler_us_per_step": 1e6 * min(scheduler_overhead(options.streams) for _ in range(options.repeats)),
        "threads": torch.get_num_threads(),
    }


def median_ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Median of the ratios of neighbours."""
    return statistics.median(one / other for one, other in zip(of, to, strict=True))


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    ragged, single = result["ragged_tokens_per_s"], result["alone_ms_per_token"]
    sys.stdout.write(f"{'':<34}{'stack':>10}{'generate':>10}{'ratio':>8}{'goal':>10}\n")
    for label, unit, values, ratio, goal in (
        (f"ragged, {options.streams} at a time", "tokens/s", ragged, result["ragged_ratio"], ">= 2"),
        ("one alone", "ms/token", single, result["alone_ratio"], "<= 1.1"),
    ):
        medians = [statistics.median(values[name]) for name in ("stack", "generate")]
        row = "".join(f"{median:>10,.0f}" if median > 100 else f"{median:>10.2f}" for median in medians)
        sys.stdout.write(f"{label + ', ' + unit:<34}{row}{ratio:>8.2f}{goal:>10}\n")
    sys.stdout.write(f"scheduler: {result['scheduler_us_per_step']:.0f} µs a step of {options.streams} sequences\n")


if __name__ == "__main__":
    main()
