"""The duration of an engine's steps, and the step-time model that fits them.

    python -m benchmarks.step_time [--engine pytorch] [--repeats 5] [--json]

The engine is called directly, without scheduler or server: prompts of several lengths, alone and together, whole and as
later pieces, then copies to and from the prefix cache, and decoding at several batch sizes and positions. Each kind of
step is measured `--repeats` times, and the median counts. Prints the coefficients of
`muai_lab.simulation.step_time.StepTime`, as its presets have them, and the errors of the model.
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

from muai_lab.engines.base import PrefillChunk, StepEngine
from muai_lab.engines.catalogue import ENGINES
from muai_lab.models.registry import resolve_model
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.simulation.step_time import StepTime, StepWork
from muai_lab.stack.prefix_cache import BLOCK_TOKENS

SLOTS = 64
PROMPTS = ((1, 16), (1, 64), (1, 128), (1, 256), (1, 512), (2, 64), (4, 64), (8, 64), (2, 256), (4, 128))
LATER_PIECES = ((256, 128), (512, 128), (512, 512), (1024, 256))  # positions before, tokens
COPIES = (16, 64, 256, 1024)  # positions
BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
POSITIONS = (32, 128, 384)

Samples = dict[StepWork, list[float]]


def measure(engine: StepEngine, repeats: int) -> Samples:
    """Seconds of each kind of step; the first round warms up and is not kept."""
    random = np.random.default_rng(0)
    samples: Samples = {}

    def prompt(tokens: int) -> list[int]:
        return [int(token) for token in random.integers(10, 2000, tokens)]

    def timed(work: StepWork, chunks: list[PrefillChunk] | None, slots: list[int]) -> None:
        began = time.perf_counter()
        if chunks:
            engine.prefill(chunks)
        else:
            engine.decode(slots)
        samples.setdefault(work, []).append(time.perf_counter() - began)

    def copied(positions: int) -> None:
        engine.prefill([PrefillChunk(0, prompt(positions), final=False)])
        work = StepWork(copied_positions=positions)
        began = time.perf_counter()
        blocks = engine.copy_out(0, 0, positions, BLOCK_TOKENS)
        out_s = time.perf_counter() - began
        began = time.perf_counter()
        engine.copy_in(1, blocks)
        samples.setdefault(work, []).extend([out_s, time.perf_counter() - began])
        free(range(2))

    def free(slots: range) -> None:
        for slot in slots:
            engine.release(slot)

    for repeat in range(repeats + 1):
        for count, tokens in PROMPTS:
            chunks = [PrefillChunk(slot, prompt(tokens)) for slot in range(count)]
            timed(StepWork(count * tokens, count * tokens * (tokens + 1) // 2), chunks, [])
            free(range(count))
        for before, tokens in LATER_PIECES:
            engine.prefill([PrefillChunk(0, prompt(before), final=False)])
            work = StepWork(tokens, tokens * before + tokens * (tokens + 1) // 2)
            timed(work, [PrefillChunk(0, prompt(tokens), start=before)], [])
            free(range(1))
        for positions in COPIES if engine.prefix_refusal() is None else ():
            copied(positions)
        for batch in BATCHES:
            for positions in POSITIONS:
                for slot in range(batch):
                    engine.prefill([PrefillChunk(slot, prompt(positions))])
                for _ in range(4):
                    timed(StepWork(0, 0, batch, batch * positions), None, list(range(batch)))
                free(range(batch))
        if repeat == 0:
            samples.clear()
    return samples


def calibrate(name: str, repeats: int) -> tuple[dict[StepWork, float], StepTime, int]:
    """Median seconds of each kind of step of an engine, what fits them, and the bytes of a position's keys and values.

    Ends the program for an engine that schedules its own steps.
    """
    optimization = OptimizationSettings.model_validate({"pytorch": {"device": "cpu"}})
    engine = ENGINES[name].make(optimization, resolve_model("qwen_chat"), slots=SLOTS)
    if not isinstance(engine, StepEngine):
        raise SystemExit(f"{name} schedules its own steps: choose pytorch, onnx or deepspeed")
    position_bytes = engine.position_bytes()
    medians = {work: statistics.median(seconds) for work, seconds in measure(engine, repeats).items()}
    engine.close()
    return medians, StepTime.fit(list(medians), list(medians.values())), position_bytes


def main() -> None:
    """Measure, fit, and print coefficients and errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="pytorch", help="a step engine")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    medians, model, position_bytes = calibrate(options.engine, options.repeats)
    if options.json:
        steps = [{**asdict(work), "seconds": seconds} for work, seconds in medians.items()]
        sys.stdout.write(json.dumps({"model": asdict(model), "steps": steps}) + "\n")
        return
    sys.stdout.write(f"keys and values of a position: {position_bytes} bytes\n")
    for name, value in asdict(model).items():
        sys.stdout.write(f"    {name}={value:.3g},\n")
    sys.stdout.write(
        f"{'prefill tokens':>15}{'pairs':>10}{'decoding':>10}{'positions':>11}{'copied':>8}{'ms':>9}{'model':>8}\n"
    )
    for work, seconds in medians.items():
        columns = (
            f"{work.prefill_tokens:>15}{work.prefill_pairs:>10}{work.decode_sequences:>10}{work.decode_positions:>11}"
            f"{work.copied_positions:>8}"
        )
        sys.stdout.write(f"{columns}{seconds * 1e3:>9.2f}{model.seconds(work) / seconds - 1:>+8.0%}\n")


if __name__ == "__main__":
    main()
