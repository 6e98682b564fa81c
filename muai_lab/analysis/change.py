"""The change of one figure from A to B over the pairs of runs: its size, interval and p-value, without a verdict.

Ratios are averaged on the log scale, as are their intervals: twice and half weigh the same, and no interval reaches
below -100 %. The noise between runs is moderated (see `moderation`). It is never taken as less than the noise within
the runs, from resampled blocks of time.
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
"""Standard deviation of one run's figure without earlier runs: of a ratio relative, of a share in units of the root
of p (1 - p), which is 3 percentage points at 90 %."""

_HIGHEST_LOG = 50.0


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of A and B.

    Attributes:
        a, b: Over the pairs, the geometric mean of a latency or a rate, the mean of a share.
        change: From A to B, with its 95 % interval; relative for a ratio (0.1 is 10 % more), absolute for a share.
        p, p_adjusted: Two-sided, alone and in its family; None if the noise between runs is not known.
        reason: The reason why there is no verdict, or a reservation about it.
        between_runs: True if the interval includes the noise between runs, not only that within them.
        detectable: The smallest change, in the unit of `change`, that such a comparison finds in four of five cases.
        repeats: The repeats of both configurations that would decide a change of this size; for single runs.
        noise: Of one run, for the history.
        noisier: True if the runs scatter more than the history allows.
        needs_s: The length of a window, in seconds, that gives single runs an interval.
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
    """Read the figures of a pair; open-loop runs over the same schedule are resampled in step.

    In a closed loop both runs have other requests at the same time, so they are resampled independently.
    single: True for the only pair, whose readings get the intervals of their runs alone.
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
    """Blocks of the window, as many as in the other run: the longer of both memories decides."""
    if run.window is None or not run.window.duration_s > 0.0:
        return None
    memory_s = max(span.memory_s for one in (run, other) if (span := run_span(one)) is not None)
    return make_blocks(run.window.start_s, run.window.end_s, correlation_s=memory_s, seed=seed)


def change_of(
    figure: KeyFigure,
    readings: Sequence[tuple[FigureReading, FigureReading]],
    prior: Callable[[KeyFigure], Prior] = lambda figure: default_prior(DEFAULT_NOISE[figure.scale]),
) -> Difference:
    """Return the change of a figure over all pairs of readings that have it, without a verdict.

    prior: The knowledge of a figure's noise between runs. A single pair has a p-value only if the prior may decide
    alone; otherwise its interval is that within the runs.
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
    """The change between single runs with the interval within them, without the noise between runs.

    The interval of each run allows for the memory of queues, or is absent if the window is too short for it. Their
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
        """Distance of one end: from A's value to `a`, from B's to `b`."""
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
    """The scale on which changes are averaged. divisor: The base of a relative difference, without a logarithm."""

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
        """The change as it is reported, with its interval if it has one."""
        ends = (estimate.value, estimate.low, estimate.high)
        return Estimate(*(None if end is None else self.one(end) for end in ends))

    def one(self, change: float) -> float:
        """The change as it is reported: relative, or of a share absolute."""
        if self.logarithmic:
            return math.expm1(min(change, _HIGHEST_LOG))
        return max(change, -1.0) if self.relative else change


def _replicates(reading: FigureReading, *, above_zero: bool) -> Floats:
    """The bootstrap replicates of a reading. above_zero: One without an event counts as one with half an event."""
    assert reading.replicates is not None, "a reading with a value has replicates"
    if not above_zero:
        return reading.replicates
    return np.maximum(reading.replicates, (reading.value or 0.0) / (2.0 * max(reading.samples, 1)))


def _variance(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.var()) if finite.size > 1 else 0.0


def _shrunk(reading: FigureReading) -> float:
    """The share with half a hit and half a miss added (Jeffreys' prior)."""
    return ((reading.value or 0.0) * reading.samples + 0.5) / (reading.samples + 1.0)


def _binomial_floor(pairs: Sequence[tuple[FigureReading, FigureReading]]) -> float:
    """Smallest variance of a difference of shares: if all requests of a run hit, resampling shows no spread."""
    variances = [[(p := _shrunk(one)) * (1.0 - p) / one.samples for one in pair] for pair in pairs]
    return float(np.sum(variances) / len(pairs))


def _share_unit(pairs: Sequence[tuple[FigureReading, FigureReading]]) -> float:
    """p (1 - p) of the mean share of both sides, to which the variance of a share is proportional."""
    p = float(np.mean([_shrunk(one) for pair in pairs for one in pair]))
    return p * (1.0 - p)
