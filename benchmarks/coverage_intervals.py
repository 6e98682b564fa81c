"""The shares of runs that have 95 % intervals, and whose intervals hold the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from benchmarks.coverage import Table
from benchmarks.worlds import WORLDS, ObservedWindow, World
from muai_lab.analysis.dependence import MeasuredSpan, middles_s, span_of
from muai_lab.analysis.statistics import Estimate, describe, rate
from muai_lab.analysis.window import in_flight_at

REQUESTS = (600, 2400, 9600)
FIGURES = ("mean", "p50", "p99", "throughput")
_AT_ONCE = 100  # runs that are simulated together

BEFORE = {
    "batching 0.5": ".93 .95 .77",
    "batching 0.8": ".61 .83 .29",
    "batching 0.9": ".46 .68 .09",
    "mm1 0.8": ".54 .71 .15",
    "ar1 2": ".65 .71 .38",
    "iid": ".93 .92 .89",
}
"""Coverage of mean, p50 and p99 at 600 requests with the first intervals (block bootstrap, percentiles)."""


@dataclass(slots=True)
class Tally:
    """Of runs: how many there were, printed an interval, and held the truth in it."""

    runs: int = 0
    printed: int = 0
    held: int = 0

    def add(self, found: Estimate | None, truth: float) -> None:
        """Count one run."""
        self.runs += 1
        if found is not None and found.low is not None and found.high is not None:
            self.printed += 1
            self.held += found.low <= truth <= found.high

    @property
    def coverage(self) -> float:
        """Share of the intervals that held the truth; NaN without any."""
        return self.held / self.printed if self.printed else float("nan")

    def __str__(self) -> str:
        if not self.printed:
            return "none"
        share = f"{100 * self.printed / self.runs:.0f} %"
        return f"{self.coverage:.3f}".removeprefix("0") + (f" of {share}" if self.printed < self.runs else "")


def span_in(window: ObservedWindow, *, bounded: bool = True) -> MeasuredSpan:
    """The window with its memory, from what a client sees. bounded: from below by the number in flight."""
    start_s, length_s = window.start_s, window.length_s
    flying = in_flight_at(window.due_s, window.end_s, middles_s(start_s, length_s))
    due_s = window.due_s[window.measured]
    latency = (window.latency_s[window.measured], due_s)
    return span_of(start_s, length_s, due_s if bounded else np.empty(0), flying, [latency])


def estimates(window: ObservedWindow, span: MeasuredSpan) -> Mapping[str, Estimate]:
    """The figures of one simulated run as `summarise` takes them of a real one."""
    measured = window.measured
    latency = describe(window.latency_s[measured], window.due_s[measured], span, quantiles=(0.5, 0.99))
    ended_s = window.end_s[(window.end_s >= span.start_s) & (window.end_s < span.start_s + span.length_s)]
    throughput = rate(np.ones(ended_s.size), ended_s, span)
    return {"mean": latency.mean, **latency.quantiles, "throughput": throughput}


def simulated(world: World, requests: int, runs: int, seed: int) -> Iterator[ObservedWindow]:
    """Yield windows of independent runs of a world. requests: Due in a window on average."""
    rng = np.random.default_rng([seed, requests, *world.name.encode()])
    for first in range(0, runs, _AT_ONCE):
        traffic = world.draw(rng, min(_AT_ONCE, runs - first), requests)
        yield from traffic.windows(requests / traffic.rate)


@cache
def truth_of(world: World) -> dict[str, float]:
    """The true value of each figure."""
    half, tail = world.quantiles((0.5, 0.99))
    return {"mean": world.mean(), "p50": half, "p99": tail, "throughput": world.rate}


def tallies(world: World, requests: int, runs: int, seed: int) -> dict[str, tuple[Tally, Tally]]:
    """Count the intervals of each figure, and those that hold the truth: by the earlier rule and now.

    By the earlier rule the memory had no lower bound.
    """
    truth = truth_of(world)
    found = {figure: (Tally(), Tally()) for figure in FIGURES}
    for window in simulated(world, requests, runs, seed):
        for rule, bounded in enumerate((False, True)):
            read = estimates(window, span_in(window, bounded=bounded))
            for figure, both in found.items():
                both[rule].add(read.get(figure), truth[figure])
    return found


def rows_of(worlds: Sequence[World], repeats: int, seed: int) -> list[list[str]]:
    """A row for each world and number of requests, each cell by the earlier rule and now."""
    rows = []
    for world in worlds:
        for requests in REQUESTS:
            found = tallies(world, requests, repeats, seed)
            cells = [shown(*found[figure]) for figure in FIGURES]
            rows.append([world.title, f"{requests:,}", *cells])
    return rows


def shown(before: Tally, now: Tally) -> str:
    """A cell with both rules; one of them if they say the same."""
    return str(now) if str(before) == str(now) else f"{before} → {now}"


def table(repeats: int, seed: int) -> Table:
    """Coverage where an interval is given, and in which share of the runs it is."""
    rows = rows_of(WORLDS, repeats, seed)
    for row, world in zip(rows[:: len(REQUESTS)], WORLDS, strict=True):
        row.append(BEFORE[world.name])
    columns = ["system", "requests", *FIGURES, "at first: mean p50 p99"]
    note = (
        f"Coverage of 95 % intervals where one is given, and the share of the {repeats:,} simulated runs that get one "
        "(no share: all of them). Where two rules differ: without → with a lower bound of the memory."
    )
    return Table(columns, [row + [""] * (len(columns) - len(row)) for row in rows], note)
