"""Due times of requests in the open loop: offsets in seconds from the start of the load.

In the closed loop a request is due when a slot becomes free, so nothing is drawn. Every process is drawn from one
generator front to back: a longer horizon begins with the same arrivals as a shorter one.

Rates that change with time use time rescaling. Let `A(t)` be the expected number of arrivals until `t`. Take a
Poisson process of rate 1, and move each point to the time at which `A` reaches it. The result is a Poisson process of
the wanted rate (Çinlar, Introduction to Stochastic Processes, 1975, section 4.7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.float64]

_BLOCK = 4096
_HALVINGS = 60  # of an interval of days: to less than a femtosecond


def constant(rate: float, horizon_s: float) -> Offsets:
    """Return evenly spaced arrivals: 0, 1/rate, 2/rate, ... below `horizon_s`. rate: requests per second."""
    count = int(np.ceil(rate * horizon_s))
    offsets = np.arange(count, dtype=np.float64) / rate
    return offsets[offsets < horizon_s]


def poisson(rate: float, horizon_s: float, rng: np.random.Generator) -> Offsets:
    """Return a Poisson process on `[0, horizon_s)`: independent exponential gaps with mean 1/rate, the first from 0."""
    return _renewals(lambda count: rng.exponential(1.0 / rate, count), horizon_s)


def gamma(rate: float, cv: float, horizon_s: float, rng: np.random.Generator) -> Offsets:
    """Return arrivals with independent gamma-distributed gaps of mean 1/rate and coefficient of variation `cv`.

    With cv = 1 they are a Poisson process; above 1 they come in bursts, below 1 they are more regular. The shape of the
    distribution, which vLLM's benchmark calls burstiness, is 1 / cv^2.
    """
    return _renewals(lambda count: rng.gamma(cv**-2, cv**2 / rate, count), horizon_s)


class Rate(Protocol):
    """A rate that changes with time."""

    def expected(self, until_s: float) -> float:
        """Return the expected number of arrivals in `[0, until_s)`."""

    def time_of(self, expected: Offsets) -> Offsets:
        """Return the times at which these numbers of arrivals are expected; the inverse of `expected`."""


def modulated(rate: Rate, horizon_s: float, rng: np.random.Generator) -> Offsets:
    """Return a Poisson process on `[0, horizon_s)` whose rate changes with time."""
    offsets = rate.time_of(poisson(1.0, rate.expected(horizon_s), rng))
    return offsets[offsets < horizon_s]


@dataclass(frozen=True, slots=True)
class PiecewiseRate:
    """A rate that is linear between knots and constant after the last; two knots at one time are a step.

    times_s: of the knots, from 0, ascending. rates: requests per second at the knots, not negative.
    """

    times_s: Offsets
    rates: Offsets

    @classmethod
    def ramp(cls, start: float, end: float, ramp_s: float) -> PiecewiseRate:
        """Return a rate that goes from `start` to `end` within `ramp_s` seconds."""
        return cls(np.array([0.0, ramp_s]), np.array([start, end]))

    @classmethod
    def steps(cls, rates: Sequence[float], step_s: float) -> PiecewiseRate:
        """Return a rate with each of `rates` for `step_s` seconds, and the last one from then on."""
        borders = np.arange(len(rates) + 1, dtype=np.float64) * step_s
        return cls(np.stack([borders[:-1], borders[1:]], axis=1).ravel(), np.repeat(np.asarray(rates, np.float64), 2))

    def expected(self, until_s: float) -> float:
        """See `Rate.expected`."""
        knot = int(np.searchsorted(self.times_s, until_s, side="right")) - 1
        since_s = until_s - self.times_s[knot]
        return float(self._reached()[knot] + self.rates[knot] * since_s + self._slopes()[knot] * since_s**2 / 2)

    def time_of(self, expected: Offsets) -> Offsets:
        """See `Rate.time_of`."""
        reached = self._reached()
        knot = np.searchsorted(reached, expected, side="right") - 1
        rate, slope, left = self.rates[knot], self._slopes()[knot], expected - reached[knot]
        # rate * t + slope * t^2 / 2 = left, solved in the form that cancels nothing when the slope is small.
        root = np.sqrt(np.maximum(rate**2 + 2 * slope * left, 0.0))
        since_s = np.divide(2 * left, rate + root, out=np.zeros(len(left)), where=left > 0)
        return np.asarray(self.times_s[knot] + since_s)

    def _reached(self) -> Offsets:
        """Return the number of arrivals expected until each knot."""
        return np.concatenate([[0.0], np.cumsum(np.diff(self.times_s) * (self.rates[:-1] + self.rates[1:]) / 2)])

    def _slopes(self) -> Offsets:
        """Return the change of the rate after each knot, per second; 0 after the last."""
        spans_s = np.diff(self.times_s)
        slopes = np.divide(np.diff(self.rates), spans_s, out=np.zeros(len(spans_s)), where=spans_s > 0)
        return np.append(slopes, 0.0)


@dataclass(frozen=True, slots=True)
class DiurnalRate:
    """A sinusoidal rate around its mean: mean * (1 + amplitude * sin(2 pi t / period_s)).

    amplitude: from 0 to 1, so the rate never becomes negative.
    """

    mean: float
    amplitude: float
    period_s: float

    def expected(self, until_s: float) -> float:
        """See `Rate.expected`."""
        return float(self._expected(np.array([until_s]))[0])

    def time_of(self, expected: Offsets) -> Offsets:
        """See `Rate.time_of`; by bisection, since the equation has no closed solution and the rate may touch 0."""
        high = expected / self.mean
        low = np.maximum(high - self.amplitude * self.period_s / np.pi, 0.0)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = self._expected(middle) < expected
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray(high)

    def _expected(self, until_s: Offsets) -> Offsets:
        turn = 2 * np.pi / self.period_s
        return np.asarray(self.mean * (until_s + self.amplitude * (1 - np.cos(turn * until_s)) / turn))


def replayed(times_s: Offsets, speed: float, horizon_s: float) -> Offsets:
    """Return recorded times, counted from the first, `speed` times as fast; those in `[0, horizon_s)`."""
    offsets = (times_s - times_s[0]) / speed if len(times_s) else times_s
    return offsets[offsets < horizon_s]


def _renewals(draw: Callable[[int], Offsets], horizon_s: float) -> Offsets:
    """Return arrivals on `[0, horizon_s)` with the gaps of `draw`, block by block."""
    gaps: list[Offsets] = []
    reached_s = 0.0
    while reached_s < horizon_s:
        block = draw(_BLOCK)
        gaps.append(block)
        reached_s += float(block.sum())
    offsets = np.cumsum(np.concatenate(gaps)) if gaps else np.empty(0)
    return offsets[offsets < horizon_s]
