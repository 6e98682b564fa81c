"""Coverage of the figures beside mean, median and p99: p90, p95, attainment and goodput."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.coverage import Table
from benchmarks.coverage_intervals import Tally, simulated, span_in
from benchmarks.unseen_worlds import conversations
from benchmarks.worlds import ObservedWindow, World, batching, iid, mm1
from muai_lab.analysis.statistics import Estimate, describe, rate, share

FIGURES = ("p90", "p95", "attainment", "goodput")
REQUESTS = (600, 2400, 9600)
WORLDS = (batching(0.5), batching(0.8), mm1(0.8), conversations(0.6), iid())
KEPT = 0.95
"""Share of the requests that keep the SLO: its bound is that quantile of the latency."""


def estimates(window: ObservedWindow, bound_s: float) -> Mapping[str, Estimate]:
    """The figures of one simulated run as `summarise` takes them of a real one."""
    span, measured = span_in(window), window.measured
    latency_s, due_s = window.latency_s[measured], window.due_s[measured]
    hit = latency_s <= bound_s
    return {
        **describe(latency_s, due_s, span, quantiles=(0.9, 0.95)).quantiles,
        "attainment": share(hit, due_s, span),
        "goodput": rate(np.ones(int(hit.sum())), due_s[hit], span),
    }


def tallies(world: World, requests: int, runs: int, seed: int) -> dict[str, Tally]:
    """Count the intervals of each figure, and those that hold the truth."""
    p90, p95 = world.quantiles((0.9, KEPT))
    truth = {"p90": p90, "p95": p95, "attainment": KEPT, "goodput": KEPT * world.rate}
    found = {figure: Tally() for figure in FIGURES}
    for window in simulated(world, requests, runs, seed):
        read = estimates(window, p95)
        for figure, tally in found.items():
            tally.add(read.get(figure), truth[figure])
    return found


def table(repeats: int, seed: int) -> Table:
    """A row for each world and number of requests."""
    rows = []
    for world in WORLDS:
        for requests in REQUESTS:
            found = tallies(world, requests, repeats, seed)
            rows.append([world.title, f"{requests:,}", *(str(found[figure]) for figure in FIGURES)])
    note = (
        f"Coverage of further figures, as above ({repeats:,} runs each). {KEPT:.0%} of the requests keep the SLO. "
        "These figures were not looked at before."
    )
    return Table(["system", "requests", *FIGURES], rows, note)
