"""The share of requests that meet an SLO over the offered rate, and the rate at which it crosses the SLO's quantile.

Two fits. `isotonic` is for the search: the falling curve that is nearest to all probes, each weighted by its requests
(pool adjacent violators; Ayer et al. 1955). `edge_of` is for the estimate. Near its crossing the curve is a logistic
one in the logarithm of the rate, fitted by quasi-likelihood to probes that are independent of each other.

The misses of a probe scatter for two reasons. Requests share a queue, so their misses come in clusters, and the
variance of a count of misses is that of independent requests times the cluster size. It is taken from the blocks of
time within the probes. And the capacity differs from one probe to the next, by server starts among others; the variance
of that grows with the square of the expected misses (as in a negative binomial model) and is taken from the scatter
between the probes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit, stdtrit

from muai_lab.arrays import Floats

SAME = 1e-9
"""Rates are the same if they differ by less than this, relatively."""

SLOPE, SLOPE_SPREAD = 20.0, 0.5
"""Prior of the slope (change of the log-odds of a miss per change of the log rate): median, and standard deviation of
its logarithm. Queues with 1 to 32 slots have slopes of 8 to 40; the prior counts only as long as few probes are there.
"""
_LEAST_WEIGHT = 1e-9  # of a rate without a request
_PARAMETERS = 2  # the crossing and the slope
_LOST = 3  # degrees of freedom: those, and the variance between probes
_STEPS = 40
_MOST_SHIFT, _MOST_TURN = 0.1, 0.5  # of the log rate and of the log slope, in one step of the fit
_CONVERGED = 1e-5
_LEAST_SPREAD = 0.02
"""Standard deviation of the log capacity between probes that is assumed at least: few probes often show none."""
_MOST_ABOVE = 2.0
"""Log-odds above the curve up to which misses count."""
_NEAR = 2.0
"""Log-odds from the quantile at which a probe weighs 0.6 of one at the crossing."""
_MOST_ERROR = 0.2  # standard error of the log rate, with which an interval is still worth its name
_FARTHEST_END = 50.0  # log rate
_FARTHEST = 0.5  # log rate from the probes to a crossing that is looked for
_EVEN = 0.5  # misses that are added in all, in clusters: the mean of a logarithm is below the logarithm of the mean


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """One probe: the rate offered, and per block of time the requests due and those that met the SLO.

    seconds: Length of the window. memory_s: Time for which its state depended on its past; None if not known. edge:
    True for a long window at the edge, which the estimate uses; False for a short one of the search.
    """

    rate: float
    due: tuple[int, ...]
    met: tuple[int, ...]
    seconds: float = 0.0
    memory_s: float | None = None
    edge: bool = False

    @property
    def attainment(self) -> float:
        """Share of the requests that met the SLO; 0 if none was due."""
        due = sum(self.due)
        return sum(self.met) / due if due else 0.0


def isotonic(outcomes: Sequence[ProbeOutcome]) -> tuple[Floats, Floats]:
    """Fit the falling curve nearest to the probes, each weighted by its requests.

    Args:
        outcomes: One probe or more.

    Returns:
        The distinct rates, ascending, and the share that met the SLO at each.
    """
    rates: list[float] = []
    met: list[float] = []
    due: list[float] = []
    for outcome in sorted(outcomes, key=lambda outcome: outcome.rate):
        if rates and abs(outcome.rate / rates[-1] - 1.0) < SAME:
            met[-1] += sum(outcome.met)
            due[-1] += sum(outcome.due)
        else:
            rates.append(outcome.rate)
            met.append(float(sum(outcome.met)))
            due.append(float(sum(outcome.due)))
    weights = np.maximum(due, _LEAST_WEIGHT)
    fit = isotonic_regression(np.array(met) / weights, weights=weights, increasing=False)
    return np.array(rates), np.asarray(fit.x, dtype=np.float64)


def crossing(rates: Floats, levels: Floats, quantile: float) -> float | None:
    """Return the rate at which a falling curve crosses the quantile, on a logarithmic scale of rates.

    It is None if the curve lies below from the start, and the highest rate if it never does.
    """
    kept = np.flatnonzero(levels >= quantile - SAME)
    if kept.size == 0:
        return None
    last = int(kept[-1])
    if last == rates.size - 1:
        return float(rates[-1])
    share = (levels[last] - quantile) / (levels[last] - levels[last + 1])
    return float(np.exp(np.log(rates[last]) + share * np.log(rates[last + 1] / rates[last])))


@dataclass(frozen=True, slots=True)
class Edge:
    """The crossing of the curve with the quantile.

    rate: Requests/s. error: Standard error of its logarithm. slope: Of the log-odds of a miss over the log rate.
    cluster: Requests that miss the SLO together. between: Variance of the relative misses between probes, beyond that
    of clusters. probes: Their number. clusters: Clusters of misses that they saw near the crossing.
    """

    rate: float
    error: float
    slope: float
    cluster: float
    between: float
    probes: int
    clusters: float

    @property
    def found(self) -> bool:
        """True if the probes show the crossing; False if they missed nothing, for example."""
        return self.error <= _MOST_ERROR

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the ends of its interval, by Student's t with three degrees of freedom less than probes."""
        t = float(stdtrit(max(self.probes - _LOST, 1), 0.5 + confidence / 2.0))
        aside = math.exp(min(t * self.error, _FARTHEST_END))
        return self.rate / aside, self.rate * aside


def edge_of(outcomes: Sequence[ProbeOutcome], quantile: float) -> Edge:
    """Fit the curve to probes of at least one request each. Raises ValueError without a probe."""
    if not outcomes:
        raise ValueError("no probe was made")
    return _Fit(outcomes, quantile).edge()


class _Fit:
    """A fit in progress: the log rate of the crossing, the log slope, and the two parts of the variance."""

    def __init__(self, outcomes: Sequence[ProbeOutcome], quantile: float) -> None:
        self._rates = np.log([one.rate for one in outcomes])
        due = [np.array(one.due, dtype=np.float64) for one in outcomes]
        missed = [np.array(one.due, dtype=np.float64) - np.array(one.met) for one in outcomes]
        self._due = np.array([float(one.sum()) for one in due])
        self._missed = np.array([float(one.sum()) for one in missed])
        self._scatter = np.array([_scatter_of_blocks(*one) for one in zip(due, missed, strict=True)])
        self._offset = float(logit(1.0 - quantile))
        self._crossing, self._log_slope, self._between = float(np.median(self._rates)), math.log(SLOPE), 0.1
        self._cluster = 1.0

    def edge(self) -> Edge:
        """Fit the curve and the variance between probes, in alternating steps, until they agree."""
        covariance = np.eye(_PARAMETERS)
        for _ in range(_STEPS):
            covariance, moved = self._step()
            before, self._between = self._between, self._between_probes()
            if moved < _CONVERGED and abs(self._between - before) < _CONVERGED:
                break
        slope = math.exp(self._log_slope)
        # Misses grow more on bad starts than they shrink on good ones: the typical start lies above the mean of misses.
        typical = self._crossing + math.log1p(self._between) / (2.0 * slope)
        error = math.sqrt(float(covariance[0, 0]))
        clusters = float(self._curve().weight @ self._missed) / self._cluster
        return Edge(math.exp(typical), error, slope, self._cluster, self._between, self._rates.size, clusters)

    def _curve(self) -> _Curve:
        between = max(self._between, (_LEAST_SPREAD * math.exp(self._log_slope)) ** 2)
        odds = math.exp(self._log_slope) * (self._rates - self._crossing)
        expected = self._due * expit(self._offset + odds)
        change = expected * expit(-self._offset - odds)
        weight = np.exp(-0.5 * (odds / _NEAR) ** 2)
        self._cluster = self._cluster_size(weight)
        seen = self._missed + _EVEN * self._cluster * weight * self._due / (weight @ self._due + 1e-12)
        return _Curve(
            expected,
            change,
            np.maximum(self._cluster * change + between * change**2, 1e-12),
            np.minimum(seen, self._due * expit(self._offset + odds + _MOST_ABOVE)),
            weight,
        )

    def _cluster_size(self, weight: Floats) -> float:
        """Variance of the misses in blocks of time ÷ that of independent misses, at least 1."""
        alone = weight @ (self._missed * (1.0 - self._missed / self._due))
        return max(1.0, float(weight @ self._scatter / alone)) if alone > 0.0 else 1.0

    def _step(self) -> tuple[Floats, float]:
        """A step of Fisher scoring with the present variances; returns the covariance, and the largest change."""
        curve = self._curve()
        slope = math.exp(self._log_slope)
        gradient = np.stack([-slope * curve.change, slope * (self._rates - self._crossing) * curve.change])
        weighted = gradient * (curve.weight / curve.variance)
        prior = np.diag([1e-6, SLOPE_SPREAD**-2.0])
        information = weighted @ gradient.T + prior
        score = weighted @ (curve.seen - curve.expected)
        score[1] -= (self._log_slope - math.log(SLOPE)) / SLOPE_SPREAD**2
        inverse = np.linalg.inv(information)
        step = np.clip(inverse @ score, [-_MOST_SHIFT, -_MOST_TURN], [_MOST_SHIFT, _MOST_TURN])
        lowest, highest = self._rates.min() - _FARTHEST, self._rates.max() + _FARTHEST
        self._crossing = float(np.clip(self._crossing + step[0], lowest, highest))
        self._log_slope += float(step[1])
        scatter = (weighted * curve.weight) @ gradient.T + prior
        return inverse @ scatter @ inverse, float(np.abs(step).max())

    def _between_probes(self) -> float:
        """Variance of the relative misses between probes, by moments."""
        curve = self._curve()
        count = float(curve.weight.sum())
        square = (curve.seen - curve.expected) ** 2 * count / max(count - _PARAMETERS, 1.0)
        excess = curve.weight * (square - self._cluster * curve.change) / curve.variance
        return max(0.0, float(excess.sum() / (curve.weight * curve.change**2 / curve.variance).sum()))


@dataclass(frozen=True, slots=True)
class _Curve:
    """Per probe: expected misses, their change with the log-odds and their variance, the misses seen, and its weight.

    A start of the server that is overloaded misses all, however little it is slower than one that is not: misses count
    as far as the scatter of others could explain. weight: 1 at the crossing, less for probes that only led there.
    """

    expected: Floats
    change: Floats
    variance: Floats
    seen: Floats
    weight: Floats


def _scatter_of_blocks(due: Floats, missed: Floats) -> float:
    """Variance of the misses of a probe, by its blocks of time."""
    if due.size < 2:
        return 0.0
    return float(((missed - due * (missed.sum() / due.sum())) ** 2).sum()) * due.size / (due.size - 1)
