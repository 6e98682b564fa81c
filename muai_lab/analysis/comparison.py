"""Do two configurations differ? Runs are the samples: paired differences over the same schedules, with intervals.

For each key figure and each pair of runs the change from A to B is taken: of latencies and rates the ratio, of shares
the difference in percentage points. Ratios are averaged, and their intervals taken, on the log scale: twice and half
weigh the same, and no interval reaches below -100 %.

How far such a change is by chance is known in two ways. *Within* a pair, blocks of time are resampled, the same blocks
in both runs where both had the same schedule (see `statistics`). *Between* pairs, their changes differ. From
`ENOUGH_PAIRS` pairs on, the spread between pairs counts (it holds everything: start of the server, state of the
machine, and the noise within), but never less than the noise within; the interval is Student's t over the pairs.
Resampling three to ten runs, as a bootstrap over runs does, cannot leave the range of what was seen and gives intervals
that are too narrow. With one or two pairs there is nothing to measure the noise between runs by: it is *assumed*, and
the result says so.

A difference is shown when it is significant *and* large enough to matter. Many figures are looked at, so the
p-values are adjusted (Holm 1979): the chance of any false finding between two equal configurations stays at 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from muai_lab.analysis.frames import Run
from muai_lab.analysis.key_figures import COMPARED, FIGURES, NEEDS_SLO, KeyFigure, Reading, read_figures
from muai_lab.analysis.pairing import Group, Pairing, is_usable, pair_runs, stated_validity
from muai_lab.analysis.slo import Slo
from muai_lab.analysis.statistics import CONFIDENCE, Blocks, Estimate, Floats, make_blocks
from muai_lab.analysis.validity import NOT_STEADY

SIGNIFICANCE = 1.0 - CONFIDENCE
ENOUGH_PAIRS = 3
ASSUMED_NOISE = 0.02
"""How much a latency or a rate of one run is assumed to differ from another's of the same configuration (standard
deviation, relative), where there are too few runs to measure it."""
SMALLEST_EFFECT = 0.02
"""Smallest relative change that counts as a difference, however certain it is."""

Verdict = Literal["better", "worse", "no difference shown", "not comparable"]
BETTER: Verdict = "better"
WORSE: Verdict = "worse"
NO_DIFFERENCE: Verdict = "no difference shown"
NOT_COMPARABLE: Verdict = "not comparable"
MIXED = "mixed"

_MANY = 1e9  # degrees of freedom with which Student's t is the normal distribution
_SMALLEST_ERROR = 1e-6  # equal runs without any spread differ by nothing, not infinitely significantly


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of A and B.

    a, b: over the pairs the geometric mean of a latency or a rate, the mean of a share. change: from A to B with its
    95 % interval; relative for scale `ratio` (0.1 is 10 % more), absolute for a share. p, p_adjusted: two-sided, alone
    and among all figures of the comparison. reason: why there is no verdict, or what qualifies it.
    """

    figure: KeyFigure
    a: float | None
    b: float | None
    change: Estimate
    p: float | None
    p_adjusted: float | None
    verdict: Verdict
    reason: str | None = None
    pairs: int = 0

    @property
    def gain(self) -> Estimate:
        """The change as a gain: positive where B is better."""
        if self.figure.better == "higher" or self.change.value is None:
            return self.change
        low, high = self.change.low, self.change.high
        return Estimate(-self.change.value, None if high is None else -high, None if low is None else -low)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome. verdict: `better`, `worse`, `mixed`, `no difference shown` or `not comparable` (B against A).

    reasons: why it is not comparable. noise_measured: whether the noise between runs was measured or assumed.
    """

    a: Group
    b: Group
    pairing: Pairing
    differences: tuple[Difference, ...]
    verdict: str
    reasons: tuple[str, ...]
    noise_measured: bool
    assumed_noise: float
    notes: tuple[str, ...]

    def of(self, figure: str) -> Difference:
        """The difference of one figure, by its name."""
        return next(difference for difference in self.differences if difference.figure.name == figure)


def compare(
    a: Group | Sequence[Run],
    b: Group | Sequence[Run],
    *,
    figures: Sequence[str] | None = None,
    slo: Slo | None = None,
    across: Collection[str] = (),
    include_invalid: bool = False,
    assumed_noise: float = ASSUMED_NOISE,
    seed: int = 0,
) -> Comparison:
    """Compare B with A, which is the baseline.

    figures: names of `FIGURES`; None for `COMPARED`. slo: judges goodput and attainment of both; None takes A's own.
    across, include_invalid: see `pair_runs`; with invalid runs the figures are given without a verdict.
    assumed_noise: see `ASSUMED_NOISE`. seed: of the bootstrap.
    """
    group_a, group_b = (group if isinstance(group, Group) else _group(group) for group in (a, b))
    pairing = pair_runs(group_a, group_b, across=across, include_invalid=include_invalid)
    notes = list(pairing.notes)
    promise, note = _common_slo(group_a, group_b) if slo is None else (slo, None)
    notes += [] if note is None else [note]
    names = [name for name in COMPARED if promise or name not in NEEDS_SLO] if figures is None else figures
    wanted = [FIGURES[name] for name in names]
    readings = [
        _read_pair(first, second, wanted, promise, pairing.same_schedule, seed + number)
        for number, (first, second) in enumerate(pairing.pairs)
    ]
    differences = [_difference(figure, readings, assumed_noise) for figure in wanted]
    reasons = tuple(obstacle.text for obstacle in pairing.obstacles)
    if reasons:
        differences = [_without_verdict(difference) for difference in differences]
        verdict: str = NOT_COMPARABLE
    else:
        differences = _judged(differences)
        verdict = _overall(differences)
        notes += _steadiness_notes(pairing)
    return Comparison(
        group_a,
        group_b,
        pairing,
        tuple(differences),
        verdict,
        reasons,
        len(pairing.pairs) >= ENOUGH_PAIRS,
        assumed_noise,
        tuple(notes),
    )


def difference(
    a: Group | Sequence[Run],
    b: Group | Sequence[Run],
    figure: str,
    *,
    slo: Slo | None = None,
    assumed_noise: float = ASSUMED_NOISE,
) -> Difference:
    """One figure of B against A, judged alone: the paired relative change with its interval."""
    return compare(a, b, figures=(figure,), slo=slo, assumed_noise=assumed_noise).differences[0]


def _group(runs: Sequence[Run]) -> Group:
    ordered = sorted(runs, key=lambda run: str(run.manifest.get("started") or ""))
    return Group(", ".join(run.path.name for run in ordered), tuple(ordered))


def _common_slo(a: Group, b: Group) -> tuple[Slo | None, str | None]:
    ours, theirs = a.runs[0].slo, b.runs[0].slo
    if ours == theirs:
        return ours, None
    promise = ours or theirs
    return promise, f"the SLOs differ; goodput and attainment of both are judged by that of {'A' if ours else 'B'}"


def _read_pair(
    a: Run, b: Run, figures: Sequence[KeyFigure], slo: Slo | None, same_schedule: bool, seed: int
) -> dict[str, tuple[Reading, Reading]]:
    """The figures of a pair; open-loop runs over the same schedule are resampled in step.

    In a closed loop the requests of a time are not the same in both runs, so there is nothing to keep in step.
    """
    in_step = same_schedule and bool(a.requests["intended_s"].notna().any())
    blocks = _blocks(a, b, seed), _blocks(b, a, seed if in_step else seed + 10_000)
    ours, theirs = (
        dict.fromkeys((figure.name for figure in figures), Reading(None, missing="no measurement window"))
        if drawn is None
        else read_figures(run, figures, drawn, slo)
        for run, drawn in zip((a, b), blocks, strict=True)
    )
    return {figure.name: (ours[figure.name], theirs[figure.name]) for figure in figures}


def _blocks(run: Run, other: Run, seed: int) -> Blocks | None:
    """Blocks of the run's window, as many as in the other run's: the longer answers of both decide."""
    if run.window is None or not run.window.duration_s > 0.0:
        return None
    typical = [float(one.measured["e2e_s"].median()) for one in (run, other) if one.measured["e2e_s"].notna().any()]
    return make_blocks(run.window.start_s, run.window.end_s, correlation_s=max(typical, default=0.0), seed=seed)


def _difference(
    figure: KeyFigure, readings: Sequence[dict[str, tuple[Reading, Reading]]], assumed_noise: float
) -> Difference:
    """The change of one figure over all pairs that have it, not yet judged."""
    both = [reading[figure.name] for reading in readings]
    pairs = [(ours, theirs) for ours, theirs in both if ours.value is not None and theirs.value is not None]
    if not pairs:
        lacking = next((f"{side}: {one.missing}" for pair in both for side, one in zip("AB", pair, strict=True)
                        if one.missing), "no pair of runs")  # fmt: skip
        sides = [next((pair[side].value for pair in both if pair[side].value is not None), None) for side in (0, 1)]
        return Difference(figure, sides[0], sides[1], Estimate(None), None, None, NOT_COMPARABLE, lacking)
    a, b = (np.array([pair[side].value for pair in pairs], dtype=np.float64) for side in (0, 1))
    logarithmic = figure.scale == "ratio" and bool((a > 0).all() and (b > 0).all())
    scale = 1.0 if figure.scale == "share" or logarithmic else float(a.mean()) or float(b.mean()) or 1.0

    def changes(ours: Floats, theirs: Floats) -> Floats:
        return np.log(theirs) - np.log(ours) if logarithmic else (theirs - ours) / scale

    seen = changes(a, b)
    replicates = [[_replicates(one, above_zero=logarithmic) for one in pair] for pair in pairs]
    within = float(np.mean([_variance(changes(ours, theirs)) for ours, theirs in replicates]))
    if figure.scale == "share":
        within = max(within, _binomial_floor(pairs))
        assumed_noise = 0.0
    mean, p = mean_change(seen, within, assumed_noise)
    ends = [mean.value or 0.0, mean.low or 0.0, mean.high or 0.0]
    if logarithmic:
        ends = [math.expm1(min(end, 50.0)) for end in ends]
    elif figure.scale == "ratio":
        ends = [max(end, -1.0) for end in ends]
    undefined = figure.scale == "ratio" and not logarithmic and float(a.mean()) == 0.0 and float(b.mean()) != 0.0
    change = Estimate(None) if undefined else Estimate(ends[0], ends[1], ends[2])
    typical = [float(np.exp(np.log(side).mean())) if logarithmic else float(side.mean()) for side in (a, b)]
    return Difference(figure, typical[0], typical[1], change, p, None, NO_DIFFERENCE, None, len(pairs))


def _replicates(reading: Reading, *, above_zero: bool) -> Floats:
    """The bootstrap replicates of a reading. above_zero: one without any event counts as one with half an event."""
    assert reading.replicates is not None, "a reading with a value has replicates"
    if not above_zero:
        return reading.replicates
    return np.maximum(reading.replicates, (reading.value or 0.0) / (2.0 * max(reading.samples, 1)))


def _variance(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.var()) if finite.size > 1 else 0.0


def _binomial_floor(pairs: Sequence[tuple[Reading, Reading]]) -> float:
    """Smallest variance of a difference of shares: where all requests of a run hit, resampling shows no spread.

    That of the binomial distribution, with half a hit and half a miss more than were seen (Jeffreys' prior).
    """
    variances = []
    for pair in pairs:
        shares = [((one.value or 0.0) * one.samples + 0.5) / (one.samples + 1.0) for one in pair]
        variances.append(sum(p * (1.0 - p) / one.samples for p, one in zip(shares, pair, strict=True)))
    return float(np.mean(variances))


def mean_change(changes: Floats, within: float, assumed_noise: float = ASSUMED_NOISE) -> tuple[Estimate, float]:
    """The mean of the pairs' changes with its 95 % interval, and the two-sided p-value of no change.

    changes: one per pair. within: variance of one change by what happened within the runs. assumed_noise: standard
    deviation of one run's figure, used with fewer than `ENOUGH_PAIRS` pairs (a change is of two runs).
    """
    between = float(changes.var(ddof=1)) if changes.size > 1 else 0.0
    if changes.size >= ENOUGH_PAIRS:
        variance, freedom = max(between, within), float(changes.size - 1)
    else:
        variance, freedom = max(between, within + 2.0 * assumed_noise**2), _MANY
    error = max(math.sqrt(variance / changes.size), _SMALLEST_ERROR)
    middle = float(changes.mean())
    reach = float(stdtrit(freedom, 1.0 - SIGNIFICANCE / 2.0)) * error
    return Estimate(middle, middle - reach, middle + reach), 2.0 * float(stdtr(freedom, -abs(middle) / error))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: at most 5 % chance of any false finding when those with p <= 0.05 are taken."""
    order = np.argsort(p)
    adjusted = [0.0] * len(p)
    highest = 0.0
    for step, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - step) * p[index]))
        adjusted[index] = highest
    return adjusted


def _judged(differences: Sequence[Difference]) -> list[Difference]:
    tested = [one for one in differences if one.p is not None]
    adjusted = dict(zip([one.figure.name for one in tested], holm([one.p or 0.0 for one in tested]), strict=True))
    return [_with_verdict(one, adjusted.get(one.figure.name)) for one in differences]


def _with_verdict(found: Difference, p_adjusted: float | None) -> Difference:
    if p_adjusted is None or found.a is None or found.b is None:
        return found
    verdict, reason = NO_DIFFERENCE, None
    if p_adjusted <= SIGNIFICANCE:
        relative = None if found.figure.scale == "share" else found.change.value
        if relative is not None and abs(relative) < SMALLEST_EFFECT:
            reason = f"certain, but smaller than {SMALLEST_EFFECT:.0%}"
        elif abs(found.b - found.a) < found.figure.floor:
            reason = "certain, but smaller than the load generator itself may be off"
            if found.figure.scale == "share":
                reason = "certain, but smaller than half a percentage point"
        else:
            rose = found.b > found.a
            verdict = BETTER if rose == (found.figure.better == "higher") else WORSE
    elif found.p is not None and found.p <= SIGNIFICANCE:
        reason = "its interval leaves out 0, as one in twenty does by chance"
    return replace(found, p_adjusted=p_adjusted, verdict=verdict, reason=reason)


def _without_verdict(found: Difference) -> Difference:
    """What was seen, for the eye; whether it means anything cannot be said."""
    return replace(found, change=Estimate(found.change.value), p=None, p_adjusted=None, verdict=NOT_COMPARABLE)


def _overall(differences: Sequence[Difference]) -> str:
    verdicts = {one.verdict for one in differences}
    if {BETTER, WORSE} <= verdicts:
        return MIXED
    for verdict in (WORSE, BETTER, NO_DIFFERENCE):
        if verdict in verdicts:
            return verdict
    return NOT_COMPARABLE


def _steadiness_notes(pairing: Pairing) -> list[str]:
    notes = []
    for label, side in (("A", 0), ("B", 1)):
        unsteady = sum(stated_validity(pair[side])["verdict"] == NOT_STEADY for pair in pairing.pairs)
        if unsteady:
            notes.append(
                f"{label} was not steady in {unsteady} of {len(pairing.pairs)} runs: how large a difference in latency "
                "is, depends on how long they took"
            )
    return notes


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """The comparison as one JSON document; shares and relative changes are numbers of 1, latencies are in seconds."""
    return {
        "schema_version": 1,
        "verdict": comparison.verdict,
        "reasons": list(comparison.reasons),
        "a": {"name": comparison.a.name, "runs": [str(run.path) for run in comparison.a.runs]},
        "b": {"name": comparison.b.name, "runs": [str(run.path) for run in comparison.b.runs]},
        "invalid_runs": {
            side: [str(run.path) for run in group.runs if not is_usable(run)]
            for side, group in (("a", comparison.a), ("b", comparison.b))
        },
        "pairs": len(comparison.pairing.pairs),
        "noise": "measured" if comparison.noise_measured else "assumed",
        "assumed_noise": None if comparison.noise_measured else comparison.assumed_noise,
        "figures": {
            one.figure.name: {
                "unit": one.figure.unit,
                "better": one.figure.better,
                "a": one.a,
                "b": one.b,
                "change": one.change.value,
                "change_low": one.change.low,
                "change_high": one.change.high,
                "p": one.p,
                "p_adjusted": one.p_adjusted,
                "verdict": one.verdict,
                "reason": one.reason,
            }
            for one in comparison.differences
        },
        "notes": list(comparison.notes),
    }
