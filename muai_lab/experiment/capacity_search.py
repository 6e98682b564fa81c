"""The search for capacity: the rate and length of the next probe, and the estimate from all of them. Pure.

Capacity is the highest offered rate at which the share of requests that meet the SLO stays at or above its quantile in
a long run. Two phases:

1. The *search* brackets it by short probes (rates grow by a factor until the SLO is once kept and once not) and halves
   the bracket on a logarithmic scale. Short windows after an idle server flatter it, so this only shows where to look.
2. The *edge*: long probes around the crossing, alternating below and above the present estimate, far enough apart to
   show the slope of the curve. Each is as long as the memory of its queue demands, after a lead-in to the stationary
   queue. Only these are used for the estimate and its interval (`muai_lab.experiment.capacity_curve.edge_of`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muai_lab.experiment.capacity_curve import SAME, Edge, ProbeOutcome, crossing, edge_of, isotonic

LEAST_EDGES = 6
"""Long probes from which there is an interval."""
MEMORIES = 20.0
"""Memories, as they look in such a window, that a long probe must span."""
LEAST_CLUSTERS = 3.0
"""Clusters of misses that all long probes together must see: misses come a backlog at a time."""
LEAD_IN = 0.2
"""Length of the lead-in before a long window, relative to it: two memories."""
_SLACK = 0.7  # the memory scatters from window to window
_ENOUGH_TO_TELL = 3  # long probes that show the size of a cluster
_TOP_PROBES = 2  # long probes at the highest rate, if the search found no end
_STEP = 0.15  # of the log rate: no long probe lies farther from those before
_NEAREST, _WIDEST = 0.01, 0.1  # of the log rate: from the crossing to a long probe
_SHORTEST_REACH, _LONGEST_REACH = 0.08, 0.4  # of the log rate: within which a long probe belongs to the edge


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """The limits of a search.

    quantile: Share of requests that must meet the SLO. For the others see `CapacitySettings` and `LoadSettings`.
    """

    quantile: float
    start_rate: float
    lowest_rate: float = 0.05
    highest_rate: float = 10_000.0
    growth: float = 2.0
    resolution: float = 1.1
    repeats: int = 10
    max_probes: int = 40
    requests: int = 200
    duration_s: float = 30.0
    warmup_s: float = 4.0
    longest_s: float = 120.0
    edge_longest_s: float = 900.0


@dataclass(frozen=True, slots=True)
class NextProbe:
    """The next probe: its rate, lead-in and window. edge: a long one, see `ProbeOutcome`."""

    rate: float
    lead_s: float
    seconds: float
    edge: bool


@dataclass(frozen=True, slots=True)
class Capacity:
    """The estimate of a search.

    rate: None if no probe kept the SLO. low, high: Its 95 % interval; None without one. edge: The fit of the long
    probes; None without any. open: True if the SLO was kept at the highest rate that was tried.
    """

    rate: float | None
    low: float | None = None
    high: float | None = None
    edge: Edge | None = None
    open: bool = False


class CapacitySearch:
    """The state of a search. `next_probe` returns the next probe, `add` takes its outcome."""

    def __init__(self, plan: SearchPlan) -> None:
        self.plan = plan
        self.outcomes: list[ProbeOutcome] = []
        self.ceiling: float | None = None
        self._fitted: tuple[list[ProbeOutcome], Edge | None] | None = None  # of the probes so far

    def add(self, outcome: ProbeOutcome) -> None:
        """Add the outcome of a probe."""
        self.outcomes.append(outcome)
        self._fitted = None

    def cannot_offer(self, rate: float) -> None:
        """Exclude a rate that the load generator cannot offer, and all rates above it."""
        self.ceiling = rate if self.ceiling is None else min(self.ceiling, rate)

    @property
    def searched(self) -> list[ProbeOutcome]:
        """The short probes."""
        return [one for one in self.outcomes if not one.edge]

    @property
    def edges(self) -> list[ProbeOutcome]:
        """The long probes, as far as they had requests."""
        return [one for one in self.outcomes if one.edge and sum(one.due) > 0]

    @property
    def bracket(self) -> tuple[float | None, float | None]:
        """The highest rate of the search that keeps the SLO and the lowest that does not, by the isotonic fit."""
        rates, levels = isotonic(self.searched)
        kept = rates[levels >= self.plan.quantile - SAME]
        lost = rates[levels < self.plan.quantile - SAME]
        return (float(kept.max()) if kept.size else None), (float(lost.min()) if lost.size else None)

    def next_probe(self) -> NextProbe | None:
        """Return the next probe; None if the search is over."""
        if len(self.outcomes) >= self.plan.max_probes:
            return None
        rate = self._next_searched()
        if rate is not None:
            return NextProbe(rate, self.plan.warmup_s, self.search_seconds(rate), edge=False)
        rate = self._next_edge() if self.plan.repeats and self.bracket[0] is not None else None
        if rate is None or (self.ceiling is not None and rate >= self.ceiling * (1 - SAME)):
            return None
        seconds = self.edge_seconds(rate)
        return NextProbe(rate, max(self.plan.warmup_s, LEAD_IN * seconds), seconds, edge=True)

    def search_seconds(self, rate: float) -> float:
        """Return the length of a short window: longer than `duration_s` if a low rate would bring too few requests."""
        wanted = max(self.plan.duration_s, self.plan.requests / rate)
        return min(wanted, max(self.plan.longest_s, self.plan.duration_s))

    def edge_seconds(self, rate: float) -> float:
        """Return the length of a long window, as far as the plan allows."""
        wanted = max(self.plan.duration_s, self.plan.requests / rate, self.needed_s())
        return min(wanted, max(self.plan.edge_longest_s, self.plan.duration_s))

    def needed_s(self) -> float:
        """Return the length of the long windows that the queue's memory and its clusters of misses demand, seconds."""
        needed_s = MEMORIES * self.memory_s()
        near, edge = self._near_fit()
        if edge is None or len(near) < _ENOUGH_TO_TELL:
            return needed_s
        missed_per_s = edge.rate * (1.0 - self.plan.quantile) * max(self.plan.repeats, LEAST_EDGES)
        return max(needed_s, LEAST_CLUSTERS * edge.cluster / missed_per_s)

    def memory_s(self) -> float:
        """Return the memory of the queue at the edge, seconds; of the search's probes if there is no long one yet."""
        seen = [one.memory_s for one in self.near() if one.memory_s is not None]
        if seen:
            return float(np.mean(seen))
        kept = [one for one in self.searched if one.attainment >= self.plan.quantile]
        return max((one.memory_s for one in kept if one.memory_s is not None), default=0.0)

    def near(self) -> list[ProbeOutcome]:
        """Return the long probes whose rates are near the crossing. Others only led there."""
        return self._near_fit()[0]

    def _near_fit(self) -> tuple[list[ProbeOutcome], Edge | None]:
        if self._fitted is None:
            self._fitted = self._fit_near()
        return self._fitted

    def _fit_near(self) -> tuple[list[ProbeOutcome], Edge | None]:
        edges = self.edges
        if not edges:
            return [], None
        fit = edge_of(edges, self.plan.quantile)
        reach = min(max(2.0 / fit.slope, _SHORTEST_REACH), _LONGEST_REACH)
        near = [one for one in edges if abs(math.log(one.rate / fit.rate)) <= reach]
        return near, fit

    def capacity(self) -> Capacity:
        """Return the estimate from all probes. Raises ValueError before the first."""
        if not self.outcomes:
            raise ValueError("no probe was made")
        low, high = self.bracket
        if low is None:
            return Capacity(None)
        if high is None and not self._top_lost():
            return Capacity(low, open=True)
        near, edge = self._near_fit()
        if edge is None:
            return Capacity(crossing(*isotonic(self.searched), self.plan.quantile))
        if len(near) < LEAST_EDGES or not edge.found or not self.long_enough():
            return Capacity(edge.rate, edge=edge)
        return Capacity(edge.rate, *edge.interval(), edge=edge)

    def long_enough(self) -> bool:
        """True if the long probes span the time that the queue's memory demands, and saw enough clusters of misses."""
        near, edge = self._near_fit()
        spanned_s = sum(one.seconds for one in near)
        demanded_s = max(self.plan.repeats, LEAST_EDGES) * MEMORIES * self.memory_s()
        return edge is not None and spanned_s >= _SLACK * demanded_s and edge.clusters >= _SLACK * LEAST_CLUSTERS

    def _next_searched(self) -> float | None:
        plan = self.plan
        if not self.searched:
            return self._offerable(min(max(plan.start_rate, plan.lowest_rate), plan.highest_rate))
        low, high = self.bracket
        if low is None:
            assert high is not None
            return high / plan.growth if high / plan.growth >= plan.lowest_rate * (1 - SAME) else None
        if high is None:
            if low >= plan.highest_rate * (1 - SAME):
                return None
            return self._offerable(min(low * plan.growth, plan.highest_rate))
        return math.sqrt(low * high) if high / low > plan.resolution else None

    def _next_edge(self) -> float | None:
        low, high = self.bracket
        if high is None and not self._top_lost():
            return low if len(self.edges) < _TOP_PROBES else None
        near, fit = self._near_fit()
        if len(self.edges) >= 2 * self.plan.repeats or (len(near) >= self.plan.repeats and self.long_enough()):
            return None
        slope = 20.0 if fit is None else fit.slope
        aside = min(max(1.0 / slope, _NEAREST), _WIDEST) * (1 if len(self.edges) % 2 else -1)
        rate = self._centre(fit) * math.exp(aside)
        return min(max(rate, self.plan.lowest_rate), self.plan.highest_rate)

    def _centre(self, fit: Edge | None) -> float:
        """The present estimate, no farther than a step from the long probes."""
        if fit is None:
            return crossing(*isotonic(self.searched), self.plan.quantile) or self.plan.start_rate
        rates = [one.rate for one in self.edges]
        return min(max(fit.rate, min(rates) * math.exp(-_STEP)), max(rates) * math.exp(_STEP))

    def _top_lost(self) -> bool:
        """True if the long probes break the SLO at the highest rate, which short ones kept."""
        return len(self.edges) >= _TOP_PROBES and _pooled(self.edges) < self.plan.quantile

    def _offerable(self, rate: float) -> float | None:
        """The rate, or a lower one that the load generator may be able to offer, if there is room."""
        if self.ceiling is None or rate < self.ceiling * (1 - SAME):
            return rate
        if not self.outcomes:  # not even the first rate: shrink, as for an SLO that is broken
            lower = self.ceiling / self.plan.growth
            return lower if lower >= self.plan.lowest_rate * (1 - SAME) else None
        offered = max(outcome.rate for outcome in self.outcomes)
        between = math.sqrt(offered * self.ceiling)
        return between if self.ceiling / offered > self.plan.resolution else None


def _pooled(outcomes: Sequence[ProbeOutcome]) -> float:
    due = [sum(one.due) for one in outcomes]
    return sum(sum(one.met) for one in outcomes) / sum(due)
