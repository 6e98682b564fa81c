"""The search for capacity: which rate to try next, and what all probes together say. Pure; it measures nothing.

Capacity is the highest offered rate at which the share of requests that meet the SLO stays at or above its quantile.
The search brackets it (rates grow by a factor until the promise is once kept and once not), halves the bracket on a
logarithmic scale, and then repeats both ends, since one probe near the edge is as good as a coin.

Noise may make a higher rate look better than a lower one. What is believed is therefore the isotonic fit: the falling
curve that is nearest to all probes, each weighted by its requests (pool adjacent violators; Ayer et al. 1955). Capacity
is where that curve crosses the quantile, between the rates on a logarithmic scale; its interval comes from resampling
the probes' blocks of time, and is never narrower than the last bracket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

REPLICATES = 1000
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """quantile: share of requests that must meet the SLO. For the others see `CapacitySettings`."""

    quantile: float
    start_rate: float
    lowest_rate: float = 0.05
    highest_rate: float = 10_000.0
    growth: float = 2.0
    resolution: float = 1.1
    repeats: int = 2
    max_probes: int = 24


@dataclass(frozen=True, slots=True)
class Outcome:
    """One probe: the rate offered, and per block of time the requests due and those that met the SLO."""

    rate: float
    due: tuple[int, ...]
    met: tuple[int, ...]

    @property
    def attainment(self) -> float:
        """Share of the requests that met the SLO; 0 when none was due."""
        due = sum(self.due)
        return sum(self.met) / due if due else 0.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """rate: None where no probe kept the promise. low, high: its 95 % interval; high None: no end was found above."""

    rate: float | None
    low: float
    high: float | None


class CapacitySearch:
    """The state of a search. `next_rate` says what to probe, `add` takes the outcome."""

    def __init__(self, plan: SearchPlan) -> None:
        self.plan = plan
        self.outcomes: list[Outcome] = []
        self.ceiling: float | None = None

    def add(self, outcome: Outcome) -> None:
        """Take the outcome of a probe."""
        self.outcomes.append(outcome)

    def cannot_offer(self, rate: float) -> None:
        """The load generator cannot offer this rate: nothing at or above it is tried any more."""
        self.ceiling = rate if self.ceiling is None else min(self.ceiling, rate)

    @property
    def bracket(self) -> tuple[float | None, float | None]:
        """The highest rate that keeps the promise and the lowest that does not, by the isotonic fit."""
        rates, levels = isotonic(self.outcomes)
        kept = rates[levels >= self.plan.quantile - _SAME]
        lost = rates[levels < self.plan.quantile - _SAME]
        return (float(kept.max()) if kept.size else None), (float(lost.min()) if lost.size else None)

    def next_rate(self) -> float | None:
        """The next rate to probe; None when the search is over."""
        plan = self.plan
        if len(self.outcomes) >= plan.max_probes:
            return None
        if not self.outcomes:
            return self._offerable(min(max(plan.start_rate, plan.lowest_rate), plan.highest_rate))
        low, high = self.bracket
        if low is None:
            assert high is not None
            return high / plan.growth if high / plan.growth >= plan.lowest_rate * (1 - _SAME) else None
        if high is None:
            if low >= plan.highest_rate * (1 - _SAME):
                return self._again(low)
            return self._offerable(min(low * plan.growth, plan.highest_rate)) or self._again(low)
        if high / low > plan.resolution:
            return math.sqrt(low * high)
        return self._again(low) or self._again(high)

    def capacity(self, seed: int = 0) -> Capacity:
        """What all probes say. Raises ValueError before the first."""
        if not self.outcomes:
            raise ValueError("no probe was made")
        low, high = self.bracket
        rng = np.random.default_rng(seed)
        drawn = [crossing(*isotonic(_resampled(self.outcomes, rng)), self.plan.quantile) for _ in range(REPLICATES)]
        ends = np.quantile([0.0 if rate is None else rate for rate, _ in drawn], [0.025, 0.975])
        open_above = high is None or float(np.mean([unbounded for _, unbounded in drawn])) > 0.025
        rate, _ = crossing(*isotonic(self.outcomes), self.plan.quantile)
        return Capacity(
            rate=rate,
            low=0.0 if low is None else min(float(ends[0]), low),
            high=None if open_above or high is None else max(float(ends[1]), high),
        )

    def _again(self, rate: float) -> float | None:
        """The rate once more, if it was not repeated often enough."""
        made = sum(abs(outcome.rate / rate - 1.0) < _SAME for outcome in self.outcomes)
        return rate if made <= self.plan.repeats else None

    def _offerable(self, rate: float) -> float | None:
        """The rate, or one between the highest that was offered and the ceiling, if there is room."""
        if self.ceiling is None or rate < self.ceiling * (1 - _SAME):
            return rate
        offered = max((outcome.rate for outcome in self.outcomes), default=self.plan.lowest_rate)
        between = math.sqrt(offered * self.ceiling)
        return between if self.ceiling / offered > self.plan.resolution else None


def isotonic(outcomes: Sequence[Outcome]) -> tuple[Floats, Floats]:
    """The falling curve nearest to the probes: distinct rates, ascending, and the share that met the SLO at each."""
    rates: list[float] = []
    met: list[float] = []
    due: list[float] = []
    for outcome in sorted(outcomes, key=lambda outcome: outcome.rate):
        if rates and abs(outcome.rate / rates[-1] - 1.0) < _SAME:
            met[-1] += sum(outcome.met)
            due[-1] += sum(outcome.due)
        else:
            rates.append(outcome.rate)
            met.append(float(sum(outcome.met)))
            due.append(float(sum(outcome.due)))
    pools: list[list[float]] = []  # met, due, how many rates
    for hits, all_due in zip(met, due, strict=True):
        pools.append([hits, max(all_due, 1e-9), 1])
        while len(pools) > 1 and pools[-1][0] / pools[-1][1] > pools[-2][0] / pools[-2][1]:
            last = pools.pop()
            pools[-1] = [ours + theirs for ours, theirs in zip(pools[-1], last, strict=True)]
    levels = np.repeat([hits / all_due for hits, all_due, _ in pools], [int(width) for _, _, width in pools])
    return np.array(rates), np.asarray(levels, dtype=np.float64)


def crossing(rates: Floats, levels: Floats, quantile: float) -> tuple[float | None, bool]:
    """Where a falling curve crosses the quantile, on a logarithmic scale of rates; and whether it never falls below.

    None where it lies below from the start; the highest rate where it never does.
    """
    kept = np.flatnonzero(levels >= quantile - _SAME)
    if kept.size == 0:
        return None, False
    last = int(kept[-1])
    if last == rates.size - 1:
        return float(rates[-1]), True
    share = (levels[last] - quantile) / (levels[last] - levels[last + 1])
    return float(np.exp(np.log(rates[last]) + share * np.log(rates[last + 1] / rates[last]))), False


def _resampled(outcomes: Sequence[Outcome], rng: np.random.Generator) -> list[Outcome]:
    """Every probe with as many blocks, drawn with replacement, and half a hit and half a miss more (Jeffreys)."""
    drawn = []
    for outcome in outcomes:
        due, met = np.array(outcome.due), np.array(outcome.met)
        chosen = rng.integers(due.size, size=due.size) if due.size else np.empty(0, dtype=np.int64)
        total, hits = int(due[chosen].sum()), int(met[chosen].sum())
        if total and hits in (0, total):
            hits = round(total * rng.beta(hits + 0.5, total - hits + 0.5))
        drawn.append(Outcome(outcome.rate, (total,), (hits,)))
    return drawn
