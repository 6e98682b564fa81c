"""ONNX Runtime against PyTorch: output tokens/s of the same ragged requests through the scheduler, 32 streams.

    python -m benchmarks.onnx_throughput [--repeats 3] [--requests 128] [--streams 32] [--json]

Prompts of 16-256 tokens, outputs of 16-128 tokens, embedded chat model, greedy. All arms run in one process and in
turns, since only ratios of interleaved repeats mean something on a machine that does other work too. No server and no
event loop: what is measured is an engine under our scheduler.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in muai_lab.__main__, before torch is imported

import numpy as np

from muai_lab.engines.base import StepEngine
from muai_lab.engines.onnx.engine import OnnxEngine
from muai_lab.engines.pytorch.engine import PyTorchEngine
from muai_lab.models.registry import resolve_model
from muai_lab.models.tokenizer import load_tokenizer
from muai_lab.processor import this_processor
from muai_lab.settings.schema import OnnxSettings, OptimizationSettings
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.scheduler import Scheduler

MODEL = "qwen_chat"


def ragged_requests(count: int, seed: int = 0) -> list[GenerationRequest]:
    """The requests, the same for every arm."""
    random = np.random.default_rng(seed)
    words = np.array(sorted(load_tokenizer(resolve_model(MODEL)).ordinary_token_ids))
    return [
        GenerationRequest(
            str(index),
            random.choice(words, random.integers(16, 257)).tolist(),
            max_tokens=int(random.integers(16, 129)),
            ignore_eos=True,
        )
        for index in range(count)
    ]


def tokens_per_s(engine: StepEngine, requests: list[GenerationRequest]) -> float:
    """Run all requests to their end; output tokens/s."""
    scheduler = Scheduler(BatchLimits(max_batch_size=engine.slots), slots=engine.slots)
    began = time.perf_counter()
    for request in requests:
        scheduler.add(request, 0.0)
    while True:
        plan = scheduler.plan(0.0)
        for slot in plan.release:
            engine.release(slot)
        if plan.empty:
            break
        tokens = dict(zip(plan.decode, engine.decode(plan.decode), strict=True))
        first = engine.prefill(plan.prefill)
        tokens |= {chunk.slot: token for chunk, token in zip(plan.prefill, first, strict=True) if token is not None}
        scheduler.complete(tokens, began=0.0, now=0.0)
        scheduler.take_events()
    return sum(request.max_tokens for request in requests) / (time.perf_counter() - began)


def main() -> None:
    """Run the arms alternately; print medians and ratios to PyTorch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    source = resolve_model(MODEL)
    plain = OptimizationSettings(onnx=OnnxSettings(execution_providers=("CPUExecutionProvider",)))
    int8 = OptimizationSettings(
        onnx=OnnxSettings(execution_providers=("CPUExecutionProvider",), enable_quantization=True)
    )
    arms: dict[str, StepEngine] = {
        "pytorch fp32": PyTorchEngine(source, plain, slots=options.streams),
        "onnx fp32": OnnxEngine(source, plain, slots=options.streams),
        "onnx int8": OnnxEngine(source, int8, slots=options.streams),
    }
    requests = ragged_requests(options.requests)
    seen: dict[str, list[float]] = {name: [] for name in arms}
    for engine in arms.values():
        tokens_per_s(engine, requests[: options.streams])
    for _ in range(options.repeats):
        for name, engine in arms.items():
            seen[name].append(tokens_per_s(engine, requests))
    against = seen["pytorch fp32"]
    result = {
        "tokens_per_s": seen,
        "ratio_to_pytorch": {
            name: statistics.median(value / base for value, base in zip(values, against, strict=True))
            for name, values in seen.items()
        },
        "int8_greedy_agreement_with_fp32": arms["onnx int8"].info.details["int8_greedy_agreement_with_fp32"],
        "int8_product": arms["onnx int8"].info.details["int8_product"],
        "processor": asdict(this_processor()),
    }
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    for name, values in seen.items():
        shown = ", ".join(f"{value:,.0f}" for value in values)
        ratio = result["ratio_to_pytorch"][name]
        sys.stdout.write(
            f"{name:<13} {statistics.median(values):>7,.0f} output tokens/s, {ratio:.2f} × PyTorch (of {shown})\n"
        )
    agreement = result["int8_greedy_agreement_with_fp32"]
    processor = this_processor()
    sys.stdout.write(
        f"int8 ({result['int8_product']}) chooses fp32's greedy token at {agreement:.1%} of positions\n"
        f"{processor.name}: {' '.join(processor.instruction_sets or ['instruction sets not known'])}\n"
    )


if __name__ == "__main__":
    main()
