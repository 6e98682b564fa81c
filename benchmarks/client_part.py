"""Does a closed run say how much of its times is the client's own? Short runs, idle and beside busy loops.

    python -m benchmarks.client_part [--idle 100] [--starved 12] [--seconds 2] [--results FILE] [--document PAGE]

The reference server answers 16 tokens after 5 ms + 2 ms each and stamps what it did, 8 slots keep it busy. Busy loops
(2 and 4 processes that only compute) compete with both for the processors. Wanted: no idle run is marked, every run
beside busy loops is, and what a run reports minus the server's stamps is at most the bound that the run states.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.document import replace_part
from benchmarks.peers import Case
from benchmarks.ruler import reference_server, schedule_of, take_stamps
from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.generator import generate
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.plan import LoadPlan

SLOTS = 8
STARVED = (2, 4)
_FIGURES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. Milliseconds by figure of the TTFT: reported, of the server's stamps, and the bound of the run."""

    busy_loops: int
    verdict: str
    requests: int
    reported_ms: dict[str, float]
    server_ms: dict[str, float]
    bound_ms: dict[str, float]

    def error_ms(self, figure: str) -> float:
        """By how much the run reports more than the server took."""
        return self.reported_ms[figure] - self.server_ms[figure]

    def held(self, figure: str) -> bool:
        """True if the error is within the bound; 0.5 ms are those of the way between the two processes."""
        return self.error_ms(figure) <= self.bound_ms[figure] + 0.5


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Processes that only compute."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def one_run(url: str, seconds: float, busy: int) -> Outcome:
    """One closed run, judged as the command `run` judges it, against the server's stamps."""
    case = Case("closed", 5.0, 2.0, None, seconds, concurrency=SLOTS)
    plan = LoadPlan(warmup_s=0.2, duration_s=seconds, drain_s=20.0, request_timeout_s=20.0, concurrency=SLOTS)
    take_stamps(url)
    schedule = schedule_of(case, seconds / 10)  # requests for the peak of a tenth of that time are plenty
    result = run_on_fast_loop(generate(schedule, HttpTarget(url, model="reference"), plan))
    stamps = {int(stamp["request_id"]): stamp for stamp in take_stamps(url)}
    measured = [
        record
        for record in result.records
        if record.status == "ok" and result.window.phase(record.due_ns) == "measure" and record.index in stamps
    ]
    reported = np.array([record.first_content_ns - record.sent_ns for record in measured]) / 1e6
    of_server = [stamps[record.index] for record in measured]
    server = np.array([stamp["first_token_ns"] - stamp["received_ns"] for stamp in of_server]) / 1e6
    added = result.generator.added["ttft_s"].figures_s
    return Outcome(
        busy,
        result.generator.verdict,
        len(measured),
        {name: float(np.quantile(reported, q)) for name, q in _FIGURES.items()},
        {name: float(np.quantile(server, q)) for name, q in _FIGURES.items()},
        {name: added[name] * 1e3 for name in _FIGURES},
    )


def measure(busy: int, runs: int, seconds: float) -> Iterator[Outcome]:
    """Make `runs` runs beside `busy` busy loops."""
    with reference_server(Case("closed", 5.0, 2.0, None, seconds)) as url, busy_loops(busy):
        for _ in range(runs):
            yield one_run(url, seconds, busy)


_COLUMNS = (
    "busy loops", "runs", "not ok", "TTFT p50", "server's", "bound", "held", "TTFT p99", "server's", "bound", "held",
)  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> str:
    """One row for each number of busy loops, as Markdown; medians of the runs, milliseconds."""
    rule = ["---:"] * len(_COLUMNS)
    groups: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.busy_loops, []).append(outcome)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (_COLUMNS, rule, *map(_cells, groups.values())))


def _cells(group: Sequence[Outcome]) -> list[str]:
    cells = [str(group[0].busy_loops), str(len(group)), str(sum(outcome.verdict != "ok" for outcome in group))]
    for figure in ("p50", "p99"):
        values = ("reported_ms", "server_ms", "bound_ms")
        cells += [f"{np.median([getattr(outcome, name)[figure] for outcome in group]):.2f}" for name in values]
        cells.append(f"{sum(outcome.held(figure) for outcome in group)}")
    return cells


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=100, help="runs on the idle machine (default 100)")
    parser.add_argument("--starved", type=int, default=12, help="runs beside each number of busy loops (default 12)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one run (default 2)")
    parser.add_argument(
        "--results", type=Path, help="file for everything measured, one line of JSON a run; appended to"
    )
    parser.add_argument("--read", type=Path, help="show results of earlier calls instead of measuring")
    parser.add_argument("--document", type=Path, help="page whose table is replaced")
    args = parser.parse_args()
    console, messages = Console(), Console(stderr=True)
    if args.read:
        outcomes = [Outcome(**json.loads(line)) for line in args.read.read_text(encoding="utf-8").splitlines()]
    else:
        outcomes = []
        for busy, runs in {0: args.idle, **dict.fromkeys(STARVED, args.starved)}.items():
            for outcome in measure(busy, runs, args.seconds):
                messages.print(f"{busy} busy loops, run {len(outcomes) + 1}: {outcome.verdict}")
                outcomes.append(outcome)
                if args.results:
                    with args.results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(outcome)) + "\n")
    text = f"{len(os.sched_getaffinity(0))} cores; medians, milliseconds.\n\n{table(outcomes)}"
    console.print(text, markup=False, soft_wrap=True)
    if args.document:
        replace_part(args.document, "client part", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
