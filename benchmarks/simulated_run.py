"""How well virtual time predicts a real run: the same requests, sent to a real server and to the simulation.

    python -m benchmarks.simulated_run [--engine pytorch] [--rates 8,16] [--duration 25] [--json]

First the engine's steps are measured and the step-time model is fitted to them, as `benchmarks.step_time` does; nothing
of the runs goes into it. Then, for each rate, the load generator asks a server over HTTP (Poisson arrivals, prompts of
16-256 tokens, outputs of 16-128, embedded chat model, prefix cache on), and the simulation gets the requests that were
sent, at the times at which they were sent. What is compared is what a client sees, of the requests in the measurement
window.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in muai_lab.__main__, before torch is imported

import numpy as np

from benchmarks.http_overhead import WORKLOAD, Quiet
from benchmarks.step_time import calibrate
from muai_lab.analysis.frames import Run, load_run
from muai_lab.experiment.runner import run_experiment
from muai_lab.settings.load import load_settings
from muai_lab.simulation.driver import VirtualDriver
from muai_lab.simulation.engine import VirtualEngine
from muai_lab.simulation.step_time import StepTime
from muai_lab.simulation.traffic import SimulatedRequest
from muai_lab.stack.events import Event, Finished, Token
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.prefix_cache import BLOCK_TOKENS, PrefixCache
from muai_lab.stack.scheduler import Scheduler

BATCH = 32
CACHE_MB = 1024

Figures = dict[str, float]


class Seen:
    """An observer that keeps when each request got its tokens."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[float]] = {}
        self.ended: set[int] = set()

    def observe(self, events: Sequence[Event]) -> None:
        """Take in the events; see `muai_lab.stack.events.Observer`."""
        for event in events:
            if isinstance(event, Token):
                self.tokens.setdefault(int(event.request_id), []).append(event.at)
            elif isinstance(event, Finished):
                self.ended.add(int(event.request_id))


def figures(ttft_s: Sequence[float], itl_s: Sequence[float], tokens: int, seconds: float) -> Figures:
    """What is compared."""
    times = {"TTFT": np.asarray(ttft_s), "ITL": np.asarray(itl_s)}
    quantiles = {f"{name} p{q}, ms": float(np.percentile(s, q) * 1e3) for name, s in times.items() for q in (50, 95)}
    return {"output tokens/s": tokens / seconds, **quantiles}


def real(engine: str, rate: float, duration_s: float, folder: Path) -> Run:
    """A run over HTTP."""
    overrides = WORKLOAD | {
        "arrival.kind": "poisson",
        "arrival.rate": rate,
        "load.duration_s": duration_s,
        "optimization.engine_preference": [engine],
        "optimization.batcher.max_batch_size": BATCH,
        "optimization.cache.max_memory_mb": CACHE_MB,
    }
    run_experiment(load_settings(environ={}, overrides=overrides), folder, Quiet())
    return load_run(folder)


def measured(run: Run) -> Figures:
    """What the clients of the run saw."""
    inside = run.requests[run.requests["in_window"] & (run.requests["status"] == "ok")]
    gaps = run.tokens()
    gaps = gaps[gaps["index"].isin(inside["index"])]
    return figures(inside["ttft_s"], gaps["itl_s"], int(inside["tokens"].sum()), _window_s(run))


def predicted(run: Run, step_time: StepTime, position_bytes: int) -> Figures:
    """What the clients of the simulation see, which sends what the run sent."""
    rows = run.requests[run.requests["status"] == "ok"].sort_values("sent_s")
    requests = [
        SimulatedRequest(number, float(row.sent_s), int(row.prompt_tokens), int(row.tokens))
        for number, row in enumerate(rows.itertuples())
    ]
    cache = PrefixCache(CACHE_MB << 20, block_bytes=BLOCK_TOKENS * position_bytes)
    scheduler = Scheduler(BatchLimits(BATCH), slots=BATCH, cache=cache)
    engine = VirtualEngine(BATCH, step_time, block_bytes=cache.block_bytes)
    seen = Seen()
    driver = VirtualDriver(scheduler, engine, observers=[seen])
    driver.offer(requests)
    driver.run()
    inside = [number for number, in_window in enumerate(rows["in_window"]) if in_window]
    ttft_s = [seen.tokens[number][0] - requests[number].at_s for number in inside]
    itl_s = np.concatenate([np.diff(seen.tokens[number]) for number in inside])
    return figures(ttft_s, itl_s.tolist(), sum(len(seen.tokens[number]) for number in inside), _window_s(run))


def _window_s(run: Run) -> float:
    if run.window is None:
        raise SystemExit(f"the run has no measurement window: {'; '.join(run.notes)}")
    return run.window.duration_s


def main() -> None:
    """Fit, run, simulate, and print both with the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="pytorch", help="a step engine")
    parser.add_argument("--rates", default="8,16", help="requests per second, with commas")
    parser.add_argument("--duration", type=float, default=25.0, help="seconds of each run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    _, step_time, position_bytes = calibrate(options.engine, repeats=3)
    results: dict[str, dict[str, Figures]] = {}
    for rate in options.rates.split(","):
        with tempfile.TemporaryDirectory() as folder:
            run = real(options.engine, float(rate), options.duration, Path(folder) / "run")
            results[rate] = {"measured": measured(run), "simulated": predicted(run, step_time, position_bytes)}
    if options.json:
        sys.stdout.write(json.dumps(results) + "\n")
        return
    sys.stdout.write(f"{'requests/s':>10}  {'':<16}{'measured':>10}{'simulated':>11}\n")
    for rate, both in results.items():
        for name, value in both["measured"].items():
            guess = both["simulated"][name]
            sys.stdout.write(f"{rate:>10}  {name:<16}{value:>10.1f}{guess:>11.1f}{guess / value - 1:>+8.0%}\n")


if __name__ == "__main__":
    main()
