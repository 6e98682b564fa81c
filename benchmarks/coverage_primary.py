"""The figure that should decide a comparison: signal and noise of each, for a server that is 10 % slower.

Pairs of runs of a server with continuous batching are simulated request by request over the same arrivals. Runs of one
configuration differ by 3 % in speed. The signal is the mean change of the slower server, the noise is the standard
deviation of the changes between equal ones.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import numpy as np

from benchmarks.coverage import Table
from muai_lab.arrays import Floats

LOADS = (0.5, 0.8, 0.9)
SPREAD, SLOWER = 0.03, 0.9
SLOTS, STEP_S, STEP_PER_SLOT_S, TOKENS = 32, 0.010, 0.0005, 100.0
REQUESTS, WARM_UP = 600, 100
SLO_S = 6.0

_Figure = Callable[[Floats], float]


def latencies(due_s: Floats, tokens: Floats, speed: float) -> Floats:
    """End-to-end latency of each request from its due time, first come first served, in `SLOTS` slots.

    All sequences in a slot get a token per step, so one counter of tokens is the progress of all.
    """
    end_s = np.empty(due_s.size)
    now, progress, arrived, waiting = 0.0, 0.0, 0, 0
    running: list[tuple[float, int]] = []
    while waiting < due_s.size or running:
        while waiting < arrived and len(running) < SLOTS:
            heapq.heappush(running, (progress + tokens[waiting], waiting))
            waiting += 1
        step_s = (STEP_S + STEP_PER_SLOT_S * len(running)) / speed
        over_s = now + (running[0][0] - progress) * step_s if running else math.inf
        if arrived < due_s.size and due_s[arrived] <= over_s:
            progress += (due_s[arrived] - now) / step_s
            now = float(due_s[arrived])
            arrived += 1
        else:
            progress, index = heapq.heappop(running)
            now = end_s[index] = over_s
    return end_s - due_s


def _log_share(e2e_s: Floats) -> float:
    return math.log(max(float((e2e_s <= SLO_S).mean()), 0.5 / e2e_s.size))


FIGURES: dict[str, _Figure] = {
    "goodput": _log_share,
    "attainment": lambda e2e_s: float((e2e_s <= SLO_S).mean()),
    "p50 e2e": lambda e2e_s: math.log(float(np.median(e2e_s))),
    "mean e2e": lambda e2e_s: math.log(float(e2e_s.mean())),
    "p99 e2e": lambda e2e_s: math.log(float(np.quantile(e2e_s, 0.99))),
}


def changes(rng: np.random.Generator, load: float, speed: float, pairs: int) -> dict[str, Floats]:
    """The changes of each figure over pairs of runs, the second of a server of this speed."""
    rate = load * SLOTS / (TOKENS * (STEP_S + STEP_PER_SLOT_S * SLOTS))
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for _ in range(pairs):
        due_s = np.cumsum(rng.exponential(1.0 / rate, WARM_UP + REQUESTS))
        tokens = rng.exponential(TOKENS, due_s.size)
        speeds = np.exp(SPREAD * rng.standard_normal(2)) * (1.0, speed)
        before, after = (latencies(due_s, tokens, float(one))[WARM_UP:] for one in speeds)
        for name, figure in FIGURES.items():
            found[name].append(figure(after) - figure(before))
    return {name: np.array(values) for name, values in found.items()}


def table(repeats: int, seed: int) -> Table:
    """A row for each figure. repeats: pairs of runs behind each cell, half of them of equal configurations."""
    rng = np.random.default_rng(seed)
    cells: dict[str, list[str]] = {name: [] for name in FIGURES}
    for load in LOADS:
        equal, slower = (changes(rng, load, speed, max(repeats // 2, 2)) for speed in (1.0, SLOWER))
        for name in FIGURES:
            signal = abs(float(slower[name].mean() - equal[name].mean()))
            cells[name].append(f"{signal / float(equal[name].std(ddof=1)):.1f}")
    note = (
        f"Signal ÷ noise of a server that is 10 % slower, under {SPREAD:.0%} between runs: the mean change it makes, "
        f"divided by the standard deviation between equal configurations. {repeats} pairs of runs over the same "
        f"{REQUESTS} arrivals; {SLOTS} slots, open loop, SLO {SLO_S:g} s end to end."
    )
    columns = ("figure", *(f"ρ {load:g}" for load in LOADS))
    return Table(columns, [[name, *row] for name, row in cells.items()], note)
