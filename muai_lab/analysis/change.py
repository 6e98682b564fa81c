"""The change of one figure from A to B over the pairs of runs: its size, its interval and its p-value, without verdict.

Ratios and their intervals are averaged on the log scale: doubling and halving weigh the same, and no interval reaches
below -100 %. The noise between runs is moderated (see `moderation`). It is at least the noise within the runs, which
resampling blocks of time shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from muai_lab.analysis.frames import Run
from muai_lab.analysis.key_figures import FigureReading, KeyFigure, read_figures, with_intervals
from muai_lab.analysis.memory import run_span
from muai_lab.analysis.moderation import (
    Prior,
    Variance,
    default_prior,
    moderated_change,
    repeats_to_decide,
    run_variance,
)
from muai_lab.analysis.statistics import Blocks, Estimate, make_blocks
from muai_lab.arrays import Floats
from muai_lab.slo import Slo

DifferenceVerdict = Literal["better", "worse", "no difference shown", "not tested", "not comparable"]
BETTER: DifferenceVerdict = "better"
WORSE: DifferenceVerdict = "worse"
NO_DIFFERENCE: DifferenceVerdict = "no difference shown"
NOT_TESTED: DifferenceVerdict = "not tested"
NOT_COMPARABLE: DifferenceVerdict = "not comparable"

DEFAULT_NOISE = {"ratio": 0.04, "share": 0.1}
"""Standard deviation of one run's figure if no earlier runs show it.

Relative for a ratio; for a share in units of the root of p (1 - p), which is 3 percentage points at 90 %.
"""

_HIGHEST_LOG = 50.0


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of A and B.

    Attributes:
        figure: The figure.
        a, b: Geometric mean over the pairs for a latency or a rate, mean for a share.
        change: Change from A to B with its 95 % interval; relative for scale `ratio` (0.1 is 10 % more), absolute for a
            share.
        p, p_adjusted: Two-sided p-values, alone and in its family; None if the noise between runs is unknown.
        verdict: The verdict.
        reason: Reason for no verdict, or a qualification of it.
        pairs: Pairs of runs that have the figure.
        between_runs: True if the interval contains the noise between runs, False if only the noise within them.
        detectable: Smallest change, in the unit of `change`, that such a comparison finds in four of five cases.
        repeats: Repeats of both configurations that would decide a change of this size, for single runs.
        noise: Variance of one run, for the history.
        noisier: True if the runs scatter more than the history allows.
        needs_s: Seconds of a window that gives single runs an interval.
    """

    figure: KeyFigure
    a: float | None
    b: float | None
    change: Estimate
    p: float | None
    p_adjusted: float | None
    verdict: DifferenceVerdict
    reason: str | None = None
    pairs: int = 0
    between_runs: bool = False
    detectable: float | None = None
    repeats: int | None = None
    noise: Variance | None = None
    noisier: bool = False
    needs_s: float | None = None

    @property
    def gain(self) -> Estimate:
        """The change as a gain: positive if B is better."""
        if self.figure.better == "higher" or self.change.value is None:
            return self.change
        low, high = self.change.low, self.change.high
        return Estimate(-self.change.value, None if high is None else -high, None if low is None else -low)

    @property
    def looks_worse(self) -> bool:
        """True if B's figure is on the worse side of A's, by chance or not."""
        if self.a is None or self.b is None:
            return False
        return self.b < self.a if self.figure.better == "higher" else self.b > self.a


def read_pair(
    a: Run, b: Run, figures: Sequence[KeyFigure], slo: Slo | None, *, same_schedule: bool, single: bool, seed: int
) -> dict[str, tuple[FigureReading, FigureReading]]:
    """Read the figures of a pair of runs.

    Open-loop runs over the same schedule are resampled in step. In a closed loop the requests at a time differ between
    the runs, so each is resampled alone.

    Args:
        a, b: The runs.
        figures: The figures.
        slo: SLO for goodput and attainment.
        same_schedule: True if both had the same schedule.
        single: True for the only pair: each reading then has the interval of its run alone.
        seed: Seed of the replicates.

    Returns:
        The readings of A and B by the name of the figure.
    """
    in_step = same_schedule and bool(a.requests["intended_s"].notna().any())
    blocks = _blocks(a, b, seed), _blocks(b, a, seed if in_step else seed + 10_000)
    ours, theirs = (
        dict.fromkeys((figure.name for figure in figures), FigureReading(None, missing="no measurement window"))
        if drawn is None
        else read_figures(run, figures, drawn, slo)
        for run, drawn in zip((a, b), blocks, strict=True)
    )
    if single:
        ours, theirs = with_intervals(a, ours, figures, slo), with_intervals(b, theirs, figures, slo)
    return {figure.name: (ours[figure.name], theirs[figure.name]) for figure in figures}


def _blocks(run: Run, other: Run, seed: int) -> Blocks | None:
    """Return blocks of the run's window, as many as in the other run's: the longer memory of both decides."""
    if run.window is None or not run.window.duration_s > 0.0:
        return None
    memory_s = max(span.memory_s for one in (run, other) if (span := run_span(one)) is not None)
    return make_blocks(run.window.start_s, run.window.end_s, correlation_s=memory_s, seed=seed)


def change_of(
    figure: KeyFigure,
    readings: Sequence[tuple[FigureReading, FigureReading]],
    prior: Callable[[KeyFigure], Prior] = lambda figure: default_prior(DEFAULT_NOISE[figure.scale]),
) -> Difference:
    """Return the change of a figure over all pairs of readings that have it, not yet judged.

    Args:
        figure: The figure.
        readings: The readings of A and B of each pair.
        prior: Prior knowledge of a figure's noise between runs. A single pair has a p-value only if the prior may
            decide alone; otherwise its interval contains only the noise within the runs.
    """
    pairs = [(ours, theirs) for ours, theirs in readings if ours.value is not None and theirs.value is not None]
    if not pairs:
        return _missing(figure, readings)
    a, b = (np.array([pair[side].value for pair in pairs], dtype=np.float64) for side in (0, 1))
    scale = _Scale.of(figure, a, b)
    seen = scale.changes(a, b)
    replicates = [[_replicates(one, above_zero=scale.logarithmic) for one in pair] for pair in pairs]
    within = float(np.mean([_variance(scale.changes(ours, theirs)) for ours, theirs in replicates]))
    unit = 1.0
    if figure.scale == "share":
        within = max(within, _binomial_floor(pairs))
        unit = _share_unit(pairs)
    known = prior(figure)
    judged = moderated_change(seen, within, known, unit=unit)
    alone, decided = len(pairs) == 1, len(pairs) > 1 or known.decides_alone
    interval = judged.change if decided else _within_runs(pairs[0], scale)
    undefined = figure.scale == "ratio" and not scale.logarithmic and a.mean() == 0.0 and b.mean() != 0.0
    typical = [float(np.exp(np.log(side).mean())) if scale.logarithmic else float(side.mean()) for side in (a, b)]
    return Difference(
        figure,
        typical[0],
        typical[1],
        Estimate(None) if undefined else scale.reported(interval),
        judged.p if decided else None,
        None,
        NOT_TESTED,
        pairs=len(pairs),
        between_runs=decided,
        detectable=scale.one(judged.detectable) if decided else None,
        repeats=repeats_to_decide(float(seen.mean()), within, known, unit=unit) if alone and not undefined else None,
        noise=run_variance(seen, within, unit=unit),
        noisier=judged.noisier and known.source == "history",
        needs_s=interval.needs_s,
    )


def _within_runs(pair: tuple[FigureReading, FigureReading], scale: _Scale) -> Estimate:
    """Return a change between single runs; its interval contains the noise within them, and none between them.

    Each run's own interval allows for the memory of queues, and is absent if the window is too short for it. Their
    distances from the values are added as independent (MOVER; Zou and Donner 2008, https://doi.org/10.1002/sim.3095).
    """
    ours, theirs = (one.alone or Estimate(one.value) for one in pair)
    value = float(scale.changes(np.array([pair[0].value]), np.array([pair[1].value]))[0])
    ends = [ours.low, ours.high, theirs.low, theirs.high]
    known = [end for end in ends if end is not None and (end > 0.0 or not scale.logarithmic)]
    needed = [one.needs_s for one in (ours, theirs) if one.needs_s is not None]
    if len(known) < len(ends):
        return Estimate(value, needs_s=max(needed, default=None))

    def reach(a: float, b: float) -> float:
        """Return the distance of one end: from A's value to `a`, and from B's to `b`."""
        moved = [scale.changes(np.array([start]), np.array([end]))[0] for start, end in
                 ((pair[0].value, a), (pair[1].value, b))]  # fmt: skip
        return math.hypot(*moved)

    low_a, high_a, low_b, high_b = known
    return Estimate(value, value - reach(high_a, low_b), value + reach(low_a, high_b))


def _missing(figure: KeyFigure, readings: Sequence[tuple[FigureReading, FigureReading]]) -> Difference:
    lacking = next((f"{side}: {one.missing}" for pair in readings for side, one in zip("AB", pair, strict=True)
                    if one.missing), "no pair of runs")  # fmt: skip
    a, b = (next((pair[side].value for pair in readings if pair[side].value is not None), None) for side in (0, 1))
    return Difference(figure, a, b, Estimate(None), None, None, NOT_COMPARABLE, lacking)


@dataclass(frozen=True, slots=True)
class _Scale:
    """The scale on which changes are averaged.

    Attributes:
        logarithmic: True if changes are differences of logarithms.
        divisor: Divisor of a plain difference.
        relative: True if changes are reported relative to A.
    """

    logarithmic: bool
    divisor: float
    relative: bool

    @classmethod
    def of(cls, figure: KeyFigure, a: Floats, b: Floats) -> _Scale:
        relative = figure.scale == "ratio"
        logarithmic = relative and bool((a > 0).all() and (b > 0).all())
        divisor = 1.0 if not relative or logarithmic else float(a.mean()) or float(b.mean()) or 1.0
        return cls(logarithmic, divisor, relative)

    def changes(self, a: Floats, b: Floats) -> Floats:
        return np.log(b) - np.log(a) if self.logarithmic else (b - a) / self.divisor

    def reported(self, estimate: Estimate) -> Estimate:
        """Return a change as it is reported, with its interval if it has one."""
        ends = (estimate.value, estimate.low, estimate.high)
        return Estimate(*(None if end is None else self.one(end) for end in ends))

    def one(self, change: float) -> float:
        """Return a change as it is reported: relative, or absolute for a share."""
        if self.logarithmic:
            return math.expm1(min(change, _HIGHEST_LOG))
        return max(change, -1.0) if self.relative else change


def _replicates(reading: FigureReading, *, above_zero: bool) -> Floats:
    """Return the replicates of a reading. above_zero: A replicate without any event counts as half an event."""
    assert reading.replicates is not None, "a reading with a value has replicates"
    if not above_zero:
        return reading.replicates
    return np.maximum(reading.replicates, (reading.value or 0.0) / (2.0 * max(reading.samples, 1)))


def _variance(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.var()) if finite.size > 1 else 0.0


def _shrunk(reading: FigureReading) -> float:
    """Return a share with half a hit and half a miss more than were seen (Jeffreys' prior)."""
    return ((reading.value or 0.0) * reading.samples + 0.5) / (reading.samples + 1.0)


def _binomial_floor(pairs: Sequence[tuple[FigureReading, FigureReading]]) -> float:
    """Return the smallest variance of a difference of shares. Resampling shows none if all requests of a run hit."""
    variances = [[(p := _shrunk(one)) * (1.0 - p) / one.samples for one in pair] for pair in pairs]
    return float(np.sum(variances) / len(pairs))


def _share_unit(pairs: Sequence[tuple[FigureReading, FigureReading]]) -> float:
    """Return p (1 - p) of the mean share of both sides, to which the variance of a share is proportional."""
    p = float(np.mean([_shrunk(one) for pair in pairs for one in pair]))
    return p * (1.0 - p)
