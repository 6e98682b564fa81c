"""The difference between two configurations: paired changes over the same schedules, with intervals.

Runs are the samples. `change` computes the change from A to B for each key figure and each pair of runs: the ratio of
latencies and rates, the difference of shares in percentage points. The noise between runs is that of the pairs,
moderated by earlier comparisons on this machine (`moderation`, `noise_history`). One figure decides, then the others
are tested (`judgement`). Single runs are described without a verdict, since they do not show by how much equal runs
differ.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtr, stdtrit

from muai_lab.analysis.change import DEFAULT_NOISE, NOT_COMPARABLE, Difference, change_of, read_pair
from muai_lab.analysis.frames import Run
from muai_lab.analysis.judgement import Judgement, choose_primary, judged
from muai_lab.analysis.key_figures import COMPARED, FIGURES, NEEDS_SLO, KeyFigure
from muai_lab.analysis.moderation import SIGNIFICANCE, Prior, declared_prior, default_prior, fitted_prior
from muai_lab.analysis.noise_history import NO_HISTORY, NoiseHistory, key_of
from muai_lab.analysis.pairing import Group, Pairing, pair_runs, stated_validity
from muai_lab.analysis.statistics import Estimate
from muai_lab.analysis.validity import NOT_STEADY
from muai_lab.arrays import Floats
from muai_lab.errors import MuaiError
from muai_lab.slo import Slo

ENOUGH_PAIRS = 3
ASSUMED_NOISE = 0.02
"""Standard deviation of one run's figure, relative, that `mean_change` assumes with fewer pairs."""

_MANY = 1e9  # degrees of freedom with which Student's t is the normal distribution
_SMALLEST_ERROR = 1e-6  # equal runs without any spread would differ with infinite significance


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome: B against A.

    reasons: The reasons why the runs are not comparable. priors: For each figure, the earlier knowledge of its noise
    between runs.
    """

    a: Group
    b: Group
    pairing: Pairing
    judgement: Judgement
    reasons: tuple[str, ...]
    priors: dict[str, Prior]
    notes: tuple[str, ...]

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The change of every figure, with its verdict."""
        return self.judgement.differences

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no difference shown`, `not tested` or `not comparable`."""
        return self.judgement.verdict

    @property
    def primary(self) -> Difference | None:
        """The figure that decides; None if the runs are not comparable."""
        return None if self.judgement.primary is None else self.of(self.judgement.primary)

    @property
    def single(self) -> bool:
        """True if there is one run of each side, which is not enough for a verdict."""
        return len(self.pairing.pairs) == 1

    def of(self, figure: str) -> Difference:
        """The difference of one figure, by its name."""
        return next(difference for difference in self.differences if difference.figure.name == figure)


def compare(
    a: Group | Sequence[Run],
    b: Group | Sequence[Run],
    *,
    figures: Sequence[str] | None = None,
    primary: str | None = None,
    slo: Slo | None = None,
    across: Collection[str] = (),
    include_invalid: bool = False,
    noise: float | None = None,
    history: NoiseHistory = NO_HISTORY,
    seed: int = 0,
) -> Comparison:
    """Compare B with A, which is the baseline.

    Args:
        a: The baseline.
        b: The candidate.
        figures: Names of `FIGURES`; None for `COMPARED`.
        primary: The figure that decides; None for the default of SLO and load (`choose_primary`).
        slo: The SLO for goodput and attainment of both; None for that of A.
        across: See `pair_runs`.
        include_invalid: See `pair_runs`; with invalid runs there is no verdict.
        noise: Declared standard deviation of one run's figure, relative; it replaces the history.
        history: Noise of earlier equal runs; the command takes `NoiseHistory.of_user()`.
        seed: Of the bootstrap.

    Raises:
        MuaiError: `primary` is no figure, or one that these runs do not have.
    """
    group_a, group_b = (group if isinstance(group, Group) else _group(group) for group in (a, b))
    pairing = pair_runs(group_a, group_b, across=across, include_invalid=include_invalid)
    notes = list(pairing.notes)
    common_slo, note = _common_slo(group_a, group_b) if slo is None else (slo, None)
    notes += [] if note is None else [note]
    wanted = _wanted(figures, primary, slo=common_slo is not None)
    single = len(pairing.pairs) == 1
    readings = [
        read_pair(
            first, second, wanted, common_slo, same_schedule=pairing.same_schedule, single=single, seed=seed + number
        )
        for number, (first, second) in enumerate(pairing.pairs)
    ]
    priors = _priors(wanted, pairing, noise, history)
    differences = [
        change_of(figure, [one[figure.name] for one in readings], lambda figure: priors[figure.name])
        for figure in wanted
    ]
    reasons = tuple(obstacle.text for obstacle in pairing.obstacles)
    if reasons:
        judgement = Judgement(tuple(map(_without_verdict, differences)), NOT_COMPARABLE, None, "")
    else:
        why = "named as the primary figure"
        if primary is None:
            closed = all(run.closed_loop for pair in pairing.pairs for run in pair)
            primary, why = choose_primary(differences, closed=closed, slo=common_slo is not None)
        judgement = judged(differences, primary, why)
        _check_primary(judgement)
        notes += [*_steadiness_notes(pairing), *_noisier_note(judgement)]
    return Comparison(group_a, group_b, pairing, judgement, reasons, priors, tuple(notes))


def difference(
    a: Group | Sequence[Run],
    b: Group | Sequence[Run],
    figure: str,
    *,
    slo: Slo | None = None,
    noise: float | None = None,
    history: NoiseHistory = NO_HISTORY,
) -> Difference:
    """Compare one figure of B with A, alone: the paired relative change with its interval."""
    return compare(a, b, figures=(figure,), slo=slo, noise=noise, history=history).differences[0]


def _group(runs: Sequence[Run]) -> Group:
    ordered = sorted(runs, key=lambda run: run.started)
    return Group(", ".join(run.path.name for run in ordered), tuple(ordered))


def _common_slo(a: Group, b: Group) -> tuple[Slo | None, str | None]:
    ours, theirs = a.runs[0].slo, b.runs[0].slo
    if ours == theirs:
        return ours, None
    side = "A" if ours else "B"
    return ours or theirs, f"the SLOs differ; goodput and attainment of both are judged by that of {side}"


def _wanted(figures: Sequence[str] | None, primary: str | None, *, slo: bool) -> list[KeyFigure]:
    names = [name for name in COMPARED if slo or name not in NEEDS_SLO] if figures is None else list(figures)
    named = [*names, *([] if primary is None else [primary])]
    unknown = [name for name in named if name not in FIGURES]
    if unknown:
        raise MuaiError(f"no such figure: {unknown[0]!r}; figures are {', '.join(FIGURES)}")
    return [FIGURES[name] for name in dict.fromkeys(named)]


def _priors(
    figures: Sequence[KeyFigure], pairing: Pairing, noise: float | None, history: NoiseHistory
) -> dict[str, Prior]:
    runs = [run for pair in pairing.pairs for run in pair]
    key = key_of(runs)

    def prior(figure: KeyFigure) -> Prior:
        default = default_prior(DEFAULT_NOISE[figure.scale])
        if noise is not None:
            return declared_prior(noise) if figure.scale == "ratio" else default
        return fitted_prior(history.past(key, figure.name, without=runs), default)

    return {figure.name: prior(figure) for figure in figures}


def _check_primary(judgement: Judgement) -> None:
    """Raise MuaiError if the named primary figure is one that these runs do not have."""
    first = next((one for one in judgement.differences if one.figure.name == judgement.primary), None)
    if first is not None and first.pairs == 0:
        hint = " (run with slo=interactive, or another)" if first.figure.name in NEEDS_SLO else ""
        raise MuaiError(f"the primary figure {first.figure.name} cannot be compared: {first.reason}{hint}")


def _without_verdict(found: Difference) -> Difference:
    """The values without any inference."""
    change = Estimate(found.change.value)
    return replace(
        found, change=change, p=None, p_adjusted=None, verdict=NOT_COMPARABLE, detectable=None, repeats=None, noise=None
    )


def _steadiness_notes(pairing: Pairing) -> list[str]:
    notes = []
    for label, side in (("A", 0), ("B", 1)):
        unsteady = sum(stated_validity(pair[side]).verdict == NOT_STEADY for pair in pairing.pairs)
        if unsteady:
            notes.append(
                f"{label} was not steady in {unsteady} of {len(pairing.pairs)} runs: how large a difference in latency "
                "is, depends on how long they took"
            )
    return notes


def _noisier_note(judgement: Judgement) -> list[str]:
    titles = ", ".join(one.figure.title for one in judgement.differences if one.noisier)
    note = (
        f"{titles}: these runs scatter more than earlier equal runs on this machine, which are left out; something may "
        "have disturbed them"
    )
    return [note] if titles else []


def mean_change(changes: Floats, within: float, assumed_noise: float = ASSUMED_NOISE) -> tuple[Estimate, float]:
    """Return the mean of paired changes with its 95 % interval, and the two-sided p-value of no change.

    Args:
        changes: One per pair.
        within: Variance of one change, from within the runs.
        assumed_noise: Standard deviation of one run's figure with fewer than `ENOUGH_PAIRS` pairs.
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


def record_noise(comparison: Comparison, history: NoiseHistory) -> str | None:
    """Add the noise between the pairs to the history; return the reason if it could not be written."""
    runs = [run for pair in comparison.pairing.pairs for run in pair]
    variances = {one.figure.name: one.noise for one in comparison.differences if one.noise is not None}
    if comparison.reasons or not comparison.pairing.same_schedule:
        return None
    return history.add(key_of(runs), runs, variances)
