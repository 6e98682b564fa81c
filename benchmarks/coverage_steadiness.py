"""The share of steady systems that are called unsteady, and of growing queues that are found."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd

from benchmarks.coverage import Table
from benchmarks.coverage_intervals import simulated
from benchmarks.worlds import ObservedWindow, World, batching, iid, mm1
from muai_lab.analysis.steadiness import NOT_STEADY, Steadiness, steadiness
from muai_lab.window import Window as Phases

STEADY = (batching(0.8), batching(0.95), mm1(0.8), mm1(0.9), mm1(0.95), iid())
GROWING = (batching(1.1), batching(1.3), mm1(1.1), mm1(1.3))
LENGTHS_S = (30.0, 120.0)
BEFORE: Mapping[tuple[str, float], str] = MappingProxyType(
    {
        ("batching 0.8", 30.0): "1.5%",
        ("batching 0.8", 120.0): "2.5%",
        ("batching 0.95", 30.0): "3.0%",
        ("batching 0.95", 120.0): "0.0%",
        ("mm1 0.8", 30.0): "1.0%",
        ("mm1 0.8", 120.0): "0.5%",
        ("mm1 0.9", 30.0): "6.5%",
        ("mm1 0.9", 120.0): "1.0%",
        ("mm1 0.95", 30.0): "6.0%",
        ("mm1 0.95", 120.0): "4.0%",
        ("iid", 30.0): "1.0%",
        ("iid", 120.0): "0.5%",
        ("batching 1.1", 30.0): "57.0%",
        ("batching 1.1", 120.0): "87.5%",
        ("batching 1.3", 30.0): "99.5%",
        ("batching 1.3", 120.0): "100.0%",
        ("mm1 1.1", 30.0): "40.5%",
        ("mm1 1.1", 120.0): "66.0%",
        ("mm1 1.3", 30.0): "84.0%",
        ("mm1 1.3", 120.0): "100.0%",
    }
)
"""With the allowance for memory of before, two thirds of the present one."""


def judged(window: ObservedWindow) -> Steadiness:
    """The verdict on a simulated window, from what a client sees."""
    frame = pd.DataFrame(
        {
            "due_s": window.due_s,
            "over_s": window.end_s,
            "in_window": window.measured,
            "ttft_s": window.latency_s,
            "ttft_from_intended_s": window.latency_s,
            "tpot_s": np.nan,
        }
    )
    start_ns, end_ns = (round(at_s * 1e9) for at_s in (window.start_s, window.start_s + window.length_s))
    return steadiness(frame, None, Phases(0, start_ns, end_ns, end_ns))


def share_called_unsteady(world: World, length_s: float, runs: int, seed: int) -> float:
    """Share of the runs that are said not to be steady."""
    requests = round(world.rate * length_s)
    return float(np.mean([judged(window).verdict == NOT_STEADY for window in simulated(world, requests, runs, seed)]))


def table(repeats: int, seed: int) -> Table:
    """A row for each world. repeats: runs."""
    rows = []
    for kind, worlds in (("steady", STEADY), ("growing", GROWING)):
        for world in worlds:
            cells = []
            for length_s in LENGTHS_S:
                now = share_called_unsteady(world, length_s, repeats, seed)
                before = BEFORE.get((world.name, length_s))
                cells.append(f"{now:.1%}" if before is None else f"{before} → {now:.1%}")
            rows.append([kind, world.title, *cells])
    note = (
        f"Share of {repeats} simulated runs that are called not steady, before → now: wanted are about 5 % of the "
        "steady systems at most, and as many as can be of those that are offered more than they can serve."
    )
    return Table(["truth", "system", *(f"window of {length_s:g} s" for length_s in LENGTHS_S)], rows, note)
