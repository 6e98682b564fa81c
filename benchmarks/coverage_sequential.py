"""`load.duration_s=auto`: does the interval hold the truth if the run stops as soon as it is narrow enough?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from benchmarks.coverage import Table
from benchmarks.coverage_intervals import Tally, truth_of
from benchmarks.worlds import World, WorldTraffic, ar1, batching, iid, mm1
from muai_lab.analysis.stopping import FIRST_LOOK_S, GROWTH, Look, Seen, enough, look_at

PRECISIONS = (0.05, 0.1)
LONGEST_S = 600.0
WORLDS = (batching(0.5), batching(0.8), mm1(0.5), mm1(0.8), ar1(0.5), ar1(2.0), iid())
_AT_ONCE = 50


@dataclass(slots=True)
class Stops:
    """Of runs that stop by themselves or at the limit: the intervals at their end, and how long they took.

    precise: of those that stopped by themselves.
    """

    printed: Tally = field(default_factory=Tally)
    precise: Tally = field(default_factory=Tally)
    lengths_s: list[float] = field(default_factory=list)


def lengths_s() -> Iterator[float]:
    """The windows that are looked at, and the longest."""
    length_s = FIRST_LOOK_S
    while length_s < LONGEST_S:
        yield length_s
        length_s *= GROWTH
    yield LONGEST_S


def looks(traffic: WorldTraffic) -> Iterator[list[Look]]:
    """The looks of each run, at what a client has seen by then."""
    rows = zip(traffic.due_s, traffic.latency_s, traffic.end_s, traffic.start_s.tolist(), strict=True)
    for due_s, latency_s, end_s, start_s in rows:
        found = []
        for length_s in lengths_s():
            now_s = start_s + length_s
            over = (end_s >= start_s) & (end_s < now_s)
            sent = (end_s >= start_s) & (due_s < now_s)
            missing = np.full(int(over.sum()), np.nan)
            seen = Seen(due_s[sent], due_s[over], end_s[over], latency_s[over], missing, missing, missing)
            found.append(look_at(seen, start_s, length_s, open_loop=True))
        yield found


def stops(world: World, runs: int, seed: int) -> dict[float, Stops]:
    """By wanted precision: when runs of a world stop, and if the truth is in the interval then."""
    rng = np.random.default_rng([seed, *world.name.encode()])
    truth, found = truth_of(world)["p50"], {precision: Stops() for precision in PRECISIONS}
    for first in range(0, runs, _AT_ONCE):
        traffic = world.draw(rng, min(_AT_ONCE, runs - first), int(world.rate * LONGEST_S))
        for seen in looks(traffic):
            for precision, one in found.items():
                stop = next((seen[at] for at in range(len(seen) - 1) if enough(seen[: at + 1], precision)), None)
                end = seen[-1] if stop is None else stop
                one.printed.add(end.estimate, truth)
                one.precise.add(None if stop is None else stop.estimate, truth)
                one.lengths_s.append(end.length_s)
    return found


def table(repeats: int, seed: int) -> Table:
    """A row for each world. repeats: runs."""
    rows = []
    for world in WORLDS:
        found = stops(world, repeats, seed)
        cells = [
            cell
            for one in found.values()
            for cell in (str(one.printed), str(one.precise), f"{float(np.median(one.lengths_s)):.0f} s")
        ]
        rows.append([world.title, *cells])
    columns = ["system"]
    for precision in PRECISIONS:
        columns += [f"±{precision:.0%}: coverage", "stopped by themselves", "median length"]
    note = (
        f"Runs with load.duration_s=auto and load.longest_s={LONGEST_S:g}: coverage of the median's interval at the "
        f"end of the run, with the share of {repeats} runs that print one (no share: all); the same of those that "
        "stopped by themselves; and the median length of all."
    )
    return Table(columns, rows, note)
