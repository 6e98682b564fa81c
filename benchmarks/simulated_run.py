"""The error of virtual time against a real run: the same requests, sent to a real server and to the simulation.

    python -m benchmarks.simulated_run [--engine pytorch] [--fit 24] [--rates 6,18] [--duration 25] [--json]

The load generator asks a server over HTTP (Poisson arrivals, prompts of 16-256 tokens, outputs of 16-128, embedded chat
model, no prefix cache). From a first run at the rate `--fit` come the step-time model, fitted to the steps that the
server took, and what a first token takes beside them (HTTP, tokenizer). Then, for each of the other rates, a fresh
server is measured, and the simulation gets the requests that were sent, at the times at which they were sent. What is
compared is what a client sees, of the requests in the measurement window.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in muai_lab.__main__, before torch is imported

import numpy as np
import uvloop

from benchmarks.http_overhead import WORKLOAD, Quiet
from muai_lab.analysis.frames import Run, load_run
from muai_lab.experiment.runner import run_experiment
from muai_lab.server.service import InferenceService, open_stack
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.resolve import Resolved, load_settings
from muai_lab.simulation.driver import VirtualDriver
from muai_lab.simulation.engine import VirtualEngine
from muai_lab.simulation.step_time import StepTime, StepWork
from muai_lab.simulation.traffic import SimulatedRequest
from muai_lab.stack.events import Admitted, Event, Finished, Step, Token
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.scheduler import Scheduler
from muai_lab.stack.serving import MakeObservers
from muai_lab.stack.stack import InferenceStack

BATCH = 32

Figures = dict[str, float]


class StepRecorder:
    """An observer that keeps what each step computed and how long it took until it was over and handed on."""

    def __init__(self) -> None:
        self.steps: list[tuple[StepWork, float]] = []
        self.first_tokens_s: list[float] = []
        self._prompts: dict[str, int] = {}
        self._new: list[Token] = []
        self._busy_until: float | None = None  # the end of the last step, if others were to follow it at once

    def observe(self, events: Sequence[Event]) -> None:
        """Take in the events; see `muai_lab.stack.events.Observer`."""
        for event in events:
            if isinstance(event, Admitted):
                self._prompts[event.request_id] = event.prompt_tokens
            elif isinstance(event, Token):
                self._new.append(event)
            elif isinstance(event, Finished):
                self.first_tokens_s.append(event.first_token_at - event.queued_at)
            elif isinstance(event, Step):
                self._step(event)

    def write(self, path: Path) -> None:
        """Keep it for the process that asked."""
        steps = [[*astuple(work), seconds] for work, seconds in self.steps]
        path.write_text(json.dumps({"steps": steps, "first_tokens_s": self.first_tokens_s}), encoding="utf-8")

    def _step(self, step: Step) -> None:
        began = step.began if self._busy_until is None else self._busy_until
        decoded = [self._prompts[token.request_id] + token.index for token in self._new if token.index]
        prompts = [self._prompts[token.request_id] for token in self._new if not token.index]
        pairs = sum(tokens * (tokens + 1) // 2 for tokens in prompts)  # near enough for those that came in pieces
        work = StepWork(step.prefill_tokens, pairs, len(decoded), sum(decoded))
        self.steps.append((work, step.at - began))
        self._new.clear()
        self._busy_until = step.at if step.running else None


@dataclass(frozen=True, slots=True)
class Calibration:
    """A model fitted to a run. noise: Of a step, relative. beside_s: Of a first token, outside the stack."""

    step_time: StepTime
    noise: float
    beside_s: float


def settings_for(engine: str, rate: float, duration_s: float, **target: str) -> Resolved:
    """Of the server, and of the run against it."""
    overrides = WORKLOAD | {
        "arrival.kind": "poisson",
        "arrival.rate": rate,
        "load.duration_s": duration_s,
        "monitoring.server.port": 0,
        "monitoring.prometheus.port": 0,
        "optimization.engine_preference": [engine],
        "optimization.batcher.max_batch_size": BATCH,
        "optimization.cache.enabled": False,
    }
    return load_settings(environ={}, overrides=overrides | {f"target.{key}": value for key, value in target.items()})


async def serve(settings: LabSettings, recorder: StepRecorder) -> None:
    """The server, with the recorder among its observers; ends with SIGTERM."""

    def opened(settings: LabSettings, name: str, observers: MakeObservers) -> InferenceStack:
        return open_stack(settings, name, lambda engine: [*observers(engine), recorder])

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    service = InferenceService(settings, opened)
    await service.start()
    sys.stdout.write(service.url + "\n")
    sys.stdout.flush()
    await stop.wait()
    await service.stop()


@contextmanager
def server(engine: str, record: Path) -> Iterator[str]:
    """A server in a process of its own: its address."""
    command = [sys.executable, "-m", "benchmarks.simulated_run", "--engine", engine, "--serve", str(record)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise SystemExit("the server did not start; what it said is above")
            yield url
        finally:
            process.terminate()


def real(engine: str, rate: float, duration_s: float, folder: Path) -> tuple[Run, Path]:
    """A run over HTTP, and what its server recorded."""
    record = folder / f"steps-{rate:g}.json"
    with server(engine, record) as url:
        settings = settings_for(engine, rate, duration_s, kind="endpoint", url=f"{url}/v1", model="qwen_chat")
        run_experiment(settings, folder / f"run-{rate:g}", Quiet())
    return load_run(folder / f"run-{rate:g}"), record


def calibrated(run: Run, record: Path) -> Calibration:
    """The model, from the steps of a run."""
    recorded = json.loads(record.read_text(encoding="utf-8"))
    works = [StepWork(*work) for *work, _ in recorded["steps"]]
    took = np.array([seconds for *_, seconds in recorded["steps"]])
    fitted = StepTime.fit(works, took.tolist())
    modelled = np.array([fitted.seconds(work) for work in works])
    # The fit leans towards the typical step; the rare slow ones are to count with their time as well.
    factor = took.sum() / modelled.sum()
    step_time = StepTime(*(factor * coefficient for coefficient in astuple(fitted)))
    noise = math.sqrt(math.expm1(float(np.var(np.log(took / modelled)))))
    answered = run.requests[run.requests["status"] == "ok"]
    beside_s = float(answered["ttft_s"].median()) - statistics.median(recorded["first_tokens_s"])
    return Calibration(step_time, noise, beside_s)


def figures(ttft_s: Sequence[float], itl_s: Sequence[float], tokens: int, seconds: float) -> Figures:
    """Return the figures that are compared."""
    times = {"TTFT": np.asarray(ttft_s), "ITL": np.asarray(itl_s)}
    quantiles = {f"{name} p{q}, ms": float(np.percentile(s, q) * 1e3) for name, s in times.items() for q in (50, 95)}
    return {"output tokens/s": tokens / seconds, **quantiles}


def measured(run: Run) -> Figures:
    """Return the figures of the run's clients. Tokens count in the window in which they came."""
    inside = run.requests[run.requests["in_window"] & (run.requests["status"] == "ok")]
    gaps = run.tokens()
    window = run.window
    assert window is not None
    counted = gaps[(gaps["t_s"] >= window.start_s) & (gaps["t_s"] < window.end_s)]
    itl_s = gaps[gaps["in_window"]]["itl_s"]
    return figures(inside["ttft_s"].tolist(), itl_s.tolist(), int(counted["tokens"].sum()), window.duration_s)


class TokenTimes:
    """An observer that keeps when each request got its tokens."""

    def __init__(self) -> None:
        self.at_s: dict[int, list[float]] = {}

    def observe(self, events: Sequence[Event]) -> None:
        """Take in the events; see `muai_lab.stack.events.Observer`."""
        for event in events:
            if isinstance(event, Token):
                self.at_s.setdefault(int(event.request_id), []).append(event.at)


def simulated(run: Run, calibration: Calibration) -> Figures:
    """Return the figures of the simulation's clients, which send the same requests as the run."""
    rows = run.requests[run.requests["status"] == "ok"].sort_values("sent_s")
    requests = [
        SimulatedRequest(number, float(sent_s), int(prompt), int(output))
        for number, (sent_s, prompt, output) in enumerate(
            zip(*(rows[column].tolist() for column in ("sent_s", "prompt_tokens", "tokens")), strict=True)
        )
    ]
    times = TokenTimes()
    engine = VirtualEngine(BATCH, calibration.step_time, noise=calibration.noise)
    driver = VirtualDriver(Scheduler(BatchLimits(BATCH), slots=BATCH), engine, observers=[times])
    driver.offer(requests)
    driver.run()
    inside = [number for number, in_window in enumerate(rows["in_window"]) if in_window]
    ttft_s = [times.at_s[number][0] - requests[number].at_s + calibration.beside_s for number in inside]
    itl_s = np.concatenate([np.diff(times.at_s[number]) for number in inside])
    window = run.window
    assert window is not None
    later = [at for tokens in times.at_s.values() for at in tokens[1:]]
    tokens = sum(window.start_s <= at < window.end_s for at in later)
    return figures(ttft_s, itl_s.tolist(), tokens, window.duration_s)


def main() -> None:
    """Fit, run, simulate, and print both with the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="pytorch", help="a step engine")
    parser.add_argument("--fit", type=float, default=24.0, help="requests per second of the run to learn from")
    parser.add_argument("--rates", default="6,18", help="requests per second of the runs to predict, with commas")
    parser.add_argument("--duration", type=float, default=25.0, help="seconds of each run")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)  # how it starts its own server
    options = parser.parse_args()
    if options.serve is not None:
        recorder = StepRecorder()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings_for(options.engine, 1.0, 1.0).settings, recorder))
        recorder.write(options.serve)
        return
    results: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calibration = calibrated(*real(options.engine, options.fit, options.duration, folder))
        for rate in options.rates.split(","):
            run, _ = real(options.engine, float(rate), options.duration, folder)
            results[rate] = {"measured": measured(run), "simulated": simulated(run, calibration)}
    if options.json:
        sys.stdout.write(json.dumps(results) + "\n")
        return
    sys.stdout.write(f"steps ± {calibration.noise:.0%}, first tokens {calibration.beside_s * 1e3:.1f} ms beside them\n")
    sys.stdout.write(f"{'requests/s':>10}  {'':<16}{'measured':>10}{'simulated':>11}\n")
    for rate, both in results.items():
        for name, value in both["measured"].items():
            guess = both["simulated"][name]
            sys.stdout.write(f"{rate:>10}  {name:<16}{value:>10.1f}{guess:>11.1f}{guess / value - 1:>+8.0%}\n")


if __name__ == "__main__":
    main()
