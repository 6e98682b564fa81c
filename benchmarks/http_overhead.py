"""Overhead of HTTP: output tokens/s over HTTP with streaming against the same stack without sockets, 32 streams.

    python -m benchmarks.http_overhead [--repeats 3] [--json]

Both arms replay the same frozen schedule in a closed loop, alternately. The result is the ratio of the medians, since
the machine is noisy. Over HTTP the server is a process of its own: generator and server share the cores as in a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from muai_lab.experiment.runner import run_experiment
from muai_lab.load.generator import LoadProgress
from muai_lab.settings.resolve import load_settings

WORKLOAD = {
    "workload.prompt_tokens": {"distribution": "uniform", "low": 16, "high": 256},
    "workload.output_tokens": {"distribution": "uniform", "low": 16, "high": 128},
    "arrival.kind": "closed",
    "load.warmup_s": 3.0,
}


class Quiet:
    """A watcher that says nothing."""

    def stage(self, what: str) -> None:
        """Nothing."""

    def load(self, progress: LoadProgress) -> None:
        """Nothing."""


def tokens_per_s(target: str, *, engine: str, streams: int, seconds: float) -> float:
    """Output tokens/s of one run."""
    settings = load_settings(
        environ={},
        overrides=WORKLOAD
        | {
            "target.kind": target,
            "arrival.concurrency": streams,
            "load.duration_s": seconds,
            "optimization.engine_preference": [engine],
            "optimization.batcher.max_batch_size": streams,
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        summary = run_experiment(settings, Path(folder) / "run", Quiet())
    measured = summary.throughput.output_tokens_per_s
    assert measured is not None, "the stack counts its tokens"
    return measured.value


def main() -> None:
    """Run both arms alternately and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--engine", default="pytorch")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seen: dict[str, list[float]] = {"inprocess": [], "server": []}
    for _ in range(options.repeats):
        for target, values in seen.items():
            values.append(tokens_per_s(target, engine=options.engine, streams=options.streams, seconds=options.seconds))
    medians = {target: statistics.median(values) for target, values in seen.items()}
    result = {"tokens_per_s": seen, "median": medians, "ratio": medians["server"] / medians["inprocess"]}
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    for target, values in seen.items():
        shown = ", ".join(f"{value:,.0f}" for value in values)
        sys.stdout.write(f"{target:<10} {medians[target]:>8,.0f} output tokens/s (of {shown})\n")
    sys.stdout.write(f"over HTTP  {result['ratio']:>8.0%} of the stack without sockets\n")


if __name__ == "__main__":
    main()
