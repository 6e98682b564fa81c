"""The noise between runs, from the few runs at hand and from equal runs of the past: moderated t-tests.

Three repeats measure their own noise badly: Student's t with two degrees of freedom needs a change of 4.3 standard
errors. Past runs on the same machine add information. A scaled inverse chi-square distribution is fitted to their
variances: it gives a prior variance and the degrees of freedom for which that counts. The variance at hand is averaged
with the prior, each weighted by its degrees of freedom, and the test has the sum of both (Smyth 2004,
https://doi.org/10.2202/1544-6115.1027). The more the past variances differ among themselves, the less the prior counts.

Variances are those of one run: of the logarithm of a ratio figure, and of a share in units of p (1 - p).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.special import digamma, fdtrc, gammaincinv, ndtr, polygamma, stdtr, stdtrit

from muai_lab.analysis.dependence import CONFIDENCE
from muai_lab.analysis.statistics import Estimate
from muai_lab.arrays import Floats

SIGNIFICANCE = 1.0 - CONFIDENCE
POWER = 0.8
"""Share of the comparisons in which the smallest detectable change is found."""
ENOUGH_HISTORY = 10.0
"""Least degrees of freedom of a history that may judge single runs alone."""
MOST_REPEATS = 50
"""Largest number of repeats in an advice."""

PriorSource = Literal["default", "history", "declared"]

_DECLARED_FREEDOM = 10.0
_MOST_FREEDOM = 10.0  # of a prior, so that ten runs at hand still count as much as any history
SMALLEST_VARIANCE = 1e-6  # 0.1 %: equal readings come from rounding, not from a machine without noise
_SMALLEST_ERROR = 1e-6  # without it, equal runs without any spread would differ with infinite significance
# The spread of past variances is estimated from few of them. `_IMAGINARY` further ones are added, which differ as
# variances with `_USUAL_FREEDOM` degrees of freedom do.
_IMAGINARY, _USUAL_FREEDOM = 2.0, 4.0
_QUANTILES = 500
_SURPRISE = 0.1  # level of the F-test that the runs at hand are noisier than the prior allows
# A machine that became three times as noisy as its history passes that test in a quarter of the comparisons of three
# repeats, which then find a difference in half of the cases. So the history is dropped before the test contradicts it.
# Two repeats have only one degree of freedom: they drop it if their variance lies above the median.
_HISTORY_GIVES_WAY = 0.3
_HISTORY_GIVES_WAY_TO_TWO = 0.5


@dataclass(frozen=True, slots=True)
class Variance:
    """A variance of one run, measured by equal runs with `freedom` degrees of freedom."""

    value: float
    freedom: float


@dataclass(frozen=True, slots=True)
class Prior:
    """Knowledge of the noise between runs before the runs at hand.

    Attributes:
        variance: Variance of one run.
        freedom: Degrees of freedom for which it counts.
        source: Its source.
        mean: Plain mean of the past variances, which is larger if they differ.
        comparisons: Past groups of equal runs.
        behind: Their degrees of freedom.
    """

    variance: float
    freedom: float
    source: PriorSource
    mean: float
    comparisons: int = 0
    behind: float = 0.0

    @property
    def decides_alone(self) -> bool:
        """True if it may judge a change between single runs."""
        return self.source == "declared" or self.behind >= ENOUGH_HISTORY


@dataclass(frozen=True, slots=True)
class Judged:
    """A mean change between two configurations.

    Attributes:
        change: The change with its 95 % interval, on the scale of the changes.
        p: Two-sided p-value.
        error: Standard error of the mean.
        freedom: Its degrees of freedom.
        detectable: Smallest change that is found with probability `POWER`.
        noisier: True if the runs at hand scatter more than the prior allows.
    """

    change: Estimate
    p: float
    error: float
    freedom: float
    detectable: float
    noisier: bool = False


def default_prior(sd: float) -> Prior:
    """Return the prior without any history: one degree of freedom. sd: Standard deviation of one run."""
    return Prior(sd**2, 1.0, "default", sd**2)


def declared_prior(sd: float) -> Prior:
    """Return the prior that a user declares: ten degrees of freedom. sd: Standard deviation of one run."""
    return Prior(sd**2, _DECLARED_FREEDOM, "declared", sd**2)


def fitted_prior(past: Sequence[Variance], default: Prior) -> Prior:
    """Fit the prior to the variances of equal runs of the past; the default counts as one of them.

    The fit uses Smyth's moments of the logarithms. Past groups differ in size, so each moment is weighted by its
    precision (DerSimonian and Laird 1986).
    """
    if not past:
        return default
    variances = np.array([max(one.value, SMALLEST_VARIANCE) for one in past] + [default.variance])
    freedoms = np.array([one.freedom for one in past] + [default.freedom])
    logs = np.log(variances) - digamma(freedoms / 2.0) + np.log(freedoms / 2.0)
    sampling = polygamma(1, freedoms / 2.0)
    spread = _spread(logs, sampling)
    weights = 1.0 / (sampling + spread)
    mean = float((variances * freedoms).sum() / freedoms.sum())
    fitted, freedom = mean, math.inf
    if spread > 0.0:
        freedom = 2.0 * _inverse_trigamma(spread)
        middle = float((weights * logs).sum() / weights.sum())
        fitted = math.exp(middle + float(digamma(freedom / 2.0)) - math.log(freedom / 2.0))
    # At most half of the past degrees of freedom: the prior variance is an estimate, too.
    freedom = min(freedom, float(freedoms.sum()) / 2.0, _MOST_FREEDOM)
    behind = float(freedoms[:-1].sum())
    return Prior(fitted, freedom, "history", max(mean, fitted), len(past), behind)


def _spread(logs: Floats, sampling: Floats) -> float:
    """Return the variance of the true log variances, at least 0, shrunk towards the usual one."""
    weights = 1.0 / sampling
    middle = (weights * logs).sum() / weights.sum()
    excess = float((weights * (logs - middle) ** 2).sum()) - (logs.size - 1)
    found = excess / float(weights.sum() - (weights**2).sum() / weights.sum())
    usual = float(polygamma(1, _USUAL_FREEDOM / 2.0))
    return max((_IMAGINARY * usual + (logs.size - 1) * found) / (_IMAGINARY + logs.size - 1), 0.0)


def _inverse_trigamma(value: float) -> float:
    """Return x with trigamma(x) = value, by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
    x = 0.5 + 1.0 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1.0 - trigamma / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-9 * x:
            break
    return x


def moderated_change(changes: Floats, within: float, prior: Prior, *, unit: float = 1.0) -> Judged:
    """Judge the mean of the pairs' changes, with the noise at hand averaged with the prior.

    A single pair has no noise at hand: the prior alone decides.

    Args:
        changes: One per pair. [pairs]
        within: Variance of one change from the noise within the runs.
        prior: The prior.
        unit: Factor from the prior's variances to the scale of the changes.
    """
    before, own = _one_run(prior, within, unit), changes.size - 1
    if own == 0:
        variance, freedom, noisier = max(before, prior.mean * unit), prior.freedom, False
    else:
        seen = float(changes.var(ddof=1)) / 2.0
        chance = float(fdtrc(own, prior.freedom, seen / before))
        noisier, alone = chance < _SURPRISE, chance < _gives_way(prior, own)
        freedom = own if alone else prior.freedom + own
        variance = seen if alone else (prior.freedom * before + own * seen) / freedom
    error = max(math.sqrt(max(2.0 * variance, within) / changes.size), _SMALLEST_ERROR)
    middle = float(changes.mean())
    reach = float(stdtrit(freedom, 1.0 - SIGNIFICANCE / 2.0)) * error
    p = 2.0 * float(stdtr(freedom, -abs(middle) / error))
    change = Estimate(middle, middle - reach, middle + reach)
    return Judged(change, p, error, freedom, smallest_detectable(error, freedom), noisier)


def _gives_way(prior: Prior, own: int) -> float:
    """Return the level of the F-test below which the runs at hand, with `own` degrees of freedom, are judged alone."""
    if prior.source != "history":
        return _SURPRISE
    return _HISTORY_GIVES_WAY if own > 1 else _HISTORY_GIVES_WAY_TO_TWO


def _one_run(prior: Prior, within: float, unit: float) -> float:
    """Return the prior's variance of one run. A history contains the noise within runs; other priors get it added."""
    known = prior.variance * unit
    found = max(known, within / 2.0) if prior.source == "history" else known + within / 2.0
    return max(found, _SMALLEST_ERROR**2)


def smallest_detectable(error: float, freedom: float) -> float:
    """Return the smallest true change that is significant with probability `POWER`."""
    return _detectable_errors(round(min(max(freedom, 1.0), 1000.0), 3)) * error


@lru_cache(maxsize=256)
def _detectable_errors(freedom: float) -> float:
    """Return `smallest_detectable` in standard errors: the noncentrality at which Student's t has that power.

    The power is the mean of the normal power over the distribution of the estimated error, at its quantiles.
    """
    critical = float(stdtrit(freedom, 1.0 - SIGNIFICANCE / 2.0))
    quantiles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    estimated = np.sqrt(gammaincinv(freedom / 2.0, quantiles) * 2.0 / freedom)
    low, high = 0.0, 10.0 * critical
    for _ in range(40):
        middle = (low + high) / 2.0
        power = float(ndtr(middle - critical * estimated).mean())
        low, high = (middle, high) if power < POWER else (low, middle)
    return high


def repeats_to_decide(change: float, within: float, prior: Prior, *, unit: float = 1.0) -> int | None:
    """Return the repeats of both configurations that would find a change of this size; None beyond `MOST_REPEATS`."""
    noise = max(2.0 * _one_run(prior, within, unit), within)
    for repeats in range(2, MOST_REPEATS + 1):
        error = max(math.sqrt(noise / repeats), _SMALLEST_ERROR)
        if smallest_detectable(error, prior.freedom + repeats - 1) <= abs(change):
            return repeats
    return None


def run_variance(changes: Floats, within: float, *, unit: float = 1.0) -> Variance | None:
    """Return the variance of one run from the pairs' changes, for the history; None with fewer than two pairs."""
    if changes.size < 2 or not unit > 0.0:
        return None
    value = max(float(changes.var(ddof=1)), within) / 2.0 / unit
    return Variance(max(value, SMALLEST_VARIANCE), float(changes.size - 1))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values by Holm's step-down adjustment: taking those <= 0.05 has a 5 % chance of any false finding."""
    order = np.argsort(p)
    adjusted = [0.0] * len(p)
    highest = 0.0
    for step, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - step) * p[index]))
        adjusted[index] = highest
    return adjusted
