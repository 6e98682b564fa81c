"""Does the interval of a capacity study hold the truth? Whole studies at the defaults, on queues of known capacity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.capacity_worlds import QueueWorld, single_server, slots
from benchmarks.coverage import Table
from benchmarks.worlds import ObservedWindow
from muai_lab.analysis.dependence import middles_s, span_of
from muai_lab.analysis.window import in_flight_at
from muai_lab.experiment.capacity_curve import ProbeOutcome
from muai_lab.experiment.capacity_search import CapacitySearch, NextProbe, SearchPlan

WORLDS = (slots(0.5), single_server(2.0), single_server(5.0), single_server(1.5, 2.0))
"""The constants of the estimate were chosen on the first two."""
QUANTILES = (0.95, 0.99)
SPREADS = (0.0, 0.03)
BLOCKS = 5

BEFORE: dict[tuple[str, float, float], tuple[float, float, float]] = {
    ("queue with 32 slots, 0.5 s", 0.95, 0.0): (0.730, 0.010, 6.0),
    ("queue with 32 slots, 0.5 s", 0.95, 0.03): (0.720, 0.005, 6.0),
    ("M/M/1, 2 s", 0.95, 0.0): (0.425, 0.058, 7.0),
    ("M/M/1, 2 s", 0.95, 0.03): (0.450, 0.037, 6.0),
    ("M/M/1, 2 s", 0.99, 0.0): (0.250, 0.069, 6.0),
    ("M/M/1, 2 s", 0.99, 0.03): (0.325, 0.073, 6.0),
    ("M/M/1, 5 s", 0.95, 0.0): (0.075, 0.111, 6.0),
    ("M/M/1, 5 s", 0.95, 0.03): (0.062, 0.115, 6.0),
    ("M/M/1, 5 s", 0.99, 0.0): (0.087, 0.099, 6.0),
    ("M/M/1, 5 s", 0.99, 0.03): (0.062, 0.117, 6.0),
    ("bursts (cv 2), one server, 1.5 s", 0.95, 0.0): (0.475, 0.058, 9.0),
}
"""Coverage, bias and minutes of load of the search of before, in the same worlds, as far as measured."""

_FIRST = 0.3  # the first rate is drawn from this share of the capacity to its reciprocal


@dataclass(slots=True)
class Study:
    """One capacity study on a simulated server.

    speed: of the server start of the search. seconds: offered load so far. restarts: each long probe has its own start.
    """

    search: CapacitySearch
    rng: np.random.Generator
    spread: float
    restarts: bool
    speed: float
    seconds: float = 0.0

    def next_speed(self, ask: NextProbe) -> float:
        """Speed of the server that the probe meets."""
        if ask.edge and self.restarts:
            return math.exp(self.rng.normal(0.0, self.spread))
        return self.speed


def outcome_of(window: ObservedWindow, ask: NextProbe, bound_s: float) -> ProbeOutcome:
    """The probe as a capacity study reads it from its run."""
    measured = window.measured
    due_s, latency_s = window.due_s[measured], window.latency_s[measured]
    flying = in_flight_at(window.due_s, window.end_s, middles_s(window.start_s, window.length_s))
    span = span_of(window.start_s, window.length_s, due_s, flying, [(latency_s, due_s)])
    block = np.clip(((due_s - window.start_s) / window.length_s * BLOCKS).astype(np.int64), 0, BLOCKS - 1)
    due = np.bincount(block, minlength=BLOCKS)
    met = np.bincount(block[latency_s <= bound_s], minlength=BLOCKS)
    return ProbeOutcome(ask.rate, tuple(due.tolist()), tuple(met.tolist()), ask.seconds, span.memory_s, ask.edge)


def run(studies: Sequence[Study], world: QueueWorld, rng: np.random.Generator) -> None:
    """Make all probes of the studies, one of each at a time."""
    while asked := [(study, ask) for study in studies if (ask := study.search.next_probe()) is not None]:
        speeds = np.array([study.next_speed(ask) for study, ask in asked])
        columns = [np.array(column) for column in zip(*((a.rate, a.lead_s, a.seconds) for _, a in asked), strict=True)]
        rates, lead_s, seconds = columns
        for (study, ask), window in zip(asked, world.probe(rng, rates, speeds, lead_s, seconds), strict=True):
            study.search.add(outcome_of(window, ask, world.bound_s))
            study.seconds += ask.lead_s + ask.seconds


def studies_of(
    world: QueueWorld, quantile: float, spread: float, repeats: int, seed: int, *, restarts: bool = True
) -> list[Study]:
    """Finished studies at the defaults. Their first rates are up to three times too low or too high."""
    rng = np.random.default_rng([seed, int(1000 * quantile), int(1000 * spread), *world.title.encode()])
    capacity = world.capacity(quantile)
    studies = []
    for _ in range(repeats):
        plan = SearchPlan(quantile=quantile, start_rate=capacity * _FIRST ** rng.uniform(-1.0, 1.0))
        studies.append(Study(CapacitySearch(plan), rng, spread, restarts, math.exp(rng.normal(0.0, spread))))
    run(studies, world, rng)
    return studies


@dataclass(frozen=True, slots=True)
class Shares:
    """Figures of many studies of one world.

    printed: share with an interval. coverage: share of these that hold the truth. bias: mean error of the log rate of
    all. width: median half width of the log interval. minutes: mean time of offered load.
    """

    printed: float
    coverage: float
    bias: float
    width: float
    minutes: float


def shares_of(world: QueueWorld, quantile: float, studies: Sequence[Study]) -> Shares:
    """Compare the results of studies with the capacity of a typical start, or of the one start that they had."""
    capacity = world.capacity(quantile)
    truth = [capacity if study.restarts else capacity * study.speed for study in studies]
    found = [study.search.capacity() for study in studies]
    printed = [(one.low, one.high, true) for one, true in zip(found, truth, strict=True) if one.low and one.high]
    return Shares(
        len(printed) / len(studies),
        float(np.mean([low <= true <= high for low, high, true in printed])),
        float(np.mean([math.log(one.rate / true) for one, true in zip(found, truth, strict=True) if one.rate])),
        float(np.median([math.log(high / low) / 2.0 for low, high, _ in printed])),
        float(np.mean([study.seconds for study in studies])) / 60.0,
    )


def table(repeats: int, seed: int) -> Table:
    """A row for each world, quantile and scatter between server starts."""
    rows = []
    for world in WORLDS:
        for quantile in QUANTILES:
            for spread in SPREADS:
                shares = shares_of(world, quantile, studies_of(world, quantile, spread, repeats, seed))
                before = BEFORE.get((world.title, quantile, spread))
                coverage, bias, minutes = ("", "", "") if before is None else (
                    f"{before[0]:.2f} → ", f"{before[1]:+.1%} → ", f"{before[2]:.0f} → "
                )  # fmt: skip
                rows.append(
                    [
                        world.title,
                        f"{quantile:.0%}",
                        f"{spread:.0%}",
                        f"{world.capacity(quantile):.1f}",
                        f"{coverage}{shares.coverage:.2f}",
                        f"{bias}{shares.bias:+.1%}",
                        f"± {shares.width:.1%}",
                        f"{shares.printed:.0%}",
                        f"{minutes}{shares.minutes:.0f}",
                    ]
                )
    note = (
        f"{repeats} capacity studies at the defaults behind each row, from first rates up to three times too low or "
        "too high. Earlier rule (short probes only, one server start) → now (long probes, a server start for each)."
    )
    columns = (
        "queue, bound", "required", "between starts", "capacity/s", "coverage", "bias", "half width",
        "with interval", "minutes of load",
    )  # fmt: skip
    return Table(columns, rows, note)
