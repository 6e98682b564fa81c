"""Inference for figures of one run, whose requests depend on each other through queues and batches.

1. The *memory* of a run is the longest integrated autocorrelation time among its slow signals (requests in flight,
   latencies), by Geyer's initial monotone sequence (1992).
2. The *long-run variance* of a figure comes from the lowest frequencies of its influence over time. It is the mean
   square of `COSINES` cosine coefficients. The estimate divided by its standard error then follows Student's t with
   `COSINES` degrees of freedom (Müller 2007; Lazarus, Lewis, Stock and Watson 2018). Few long batches would do the
   same, with more bias for the same degrees of freedom.
3. The *adequacy rule* decides if the window spans enough memories for an interval. If not, there is none.

A window that is too short underestimates its own memory. A window in which no backlog happened to form shows low
latencies, a low variance and a short memory together. So the rule demands more memories than the 20 that would suffice
for a known memory, and the standard error grows by `1 + WIDENING * memory / window`. `python -m benchmarks.coverage`
measures the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from muai_lab.arrays import Floats

CONFIDENCE = 0.95
BINS = 1024
COSINES = 6
WIDENING = 50.0
ENOUGH_MEMORIES = 70.0
"""Memories that a window must span before its figures get an interval."""
MEMORIES_BEYOND = 8.0
"""Memories that must lie beyond a quantile before it gets an interval, as a share of the window: p99 needs 800.

A mean needs half as many in the outermost samples that make half of its variance: those of backlogs, if any.
"""
UNSEEN_MEMORIES = 200.0
"""Memories for a figure that few samples decide, if it shows no dependence: rarer backlogs may not have formed yet."""
_FEW_SAMPLES = 0.25  # share of the samples that decide a figure, below which they are few
HARDLY_DEPENDENT = 3.0
"""Ratio of the long-run variance to that of independent samples up to which the memory hardly shows in a figure."""
LEAST_RATIO = 0.5
"""Smallest such ratio in use: dependence only widens an interval, and the estimate of the variance scatters."""
RELAXATION = 1.5
"""Factor on the least memory that follows from the number in flight: queues have about twice that memory."""
_REQUESTS_PER_BIN = 2
_MIN_BINS = 16


def autocorrelation_time(series: Floats) -> float:
    """Return the integrated autocorrelation time `1 + 2 * (r1 + r2 + ...)` of an evenly spaced series.

    Autocorrelations are summed in adjacent pairs while the sum of a pair is positive. No pair counts for more than the
    one before it.

    Returns:
        Steps, at least 1, as for a constant series.
    """
    deviation = series - series.mean()
    square = float(deviation @ deviation)
    if series.size < 4 or square <= 1e-24 * max(1.0, float(series @ series)):
        return 1.0
    spectrum = np.fft.rfft(deviation, 2 * series.size)
    correlation = np.fft.irfft(spectrum * np.conj(spectrum))[: series.size // 2 * 2] / square
    pairs = correlation[::2] + correlation[1::2]
    ends = np.flatnonzero(pairs <= 0.0)
    positive = np.minimum.accumulate(pairs[: ends[0]] if ends.size else pairs)
    return max(1.0, 2.0 * float(positive.sum()) - 1.0)


@dataclass(frozen=True, slots=True)
class MeasuredSpan:
    """The measurement window `[start_s, start_s + length_s)` and the memory of the run in it, in seconds."""

    start_s: float
    length_s: float
    memory_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.length_s > 0.0:
            raise ValueError(f"a window needs a positive length, got {self.length_s} s")

    @property
    def memories(self) -> float:
        """Memories that the window spans."""
        return self.length_s / max(self.memory_s, self.length_s / BINS)

    def t(self, ratio: float) -> float:
        """Return the standard errors on either side of an estimate that make its interval. ratio: See `needed_s`."""
        widening = 1.0 if ratio <= HARDLY_DEPENDENT else 1.0 + WIDENING / self.memories
        return widening * float(stdtrit(COSINES, 0.5 + CONFIDENCE / 2.0))

    def long_run_variance(self, influences: Floats, t_s: Floats) -> float:
        """Return the variance of the sum of influences at the times `t_s`, dependence included.

        Args:
            influences: Deviations whose sum is 0. [samples]
            t_s: Seconds. [samples]
        """
        sums: Floats = np.bincount(self._bins(t_s), weights=influences, minlength=BINS).astype(np.float64)
        return self._of_sums(sums)

    def long_run_variance_of_count(self, amounts: Floats, t_s: Floats) -> float:
        """Return the variance of the sum of amounts over the window; their times are random, too.

        Args:
            amounts: One per event. [events]
            t_s: Seconds. [events]
        """
        sums: Floats = np.bincount(self._bins(t_s), weights=amounts, minlength=BINS).astype(np.float64)
        return self._of_sums(sums - sums.mean())

    def _bins(self, t_s: Floats) -> NDArray[np.int64]:
        index = ((t_s - self.start_s) * (BINS / self.length_s)).astype(np.int64)
        return np.clip(index, 0, BINS - 1)

    @staticmethod
    def _of_sums(sums: Floats) -> float:
        order = np.arange(1, COSINES + 1)[:, None]
        waves = math.sqrt(2.0) * np.cos(math.pi * order * (np.arange(BINS) + 0.5) / BINS)
        return float(np.mean((waves @ sums) ** 2))

    def needed_s(self, ratio: float, beyond: float = 0.5) -> float:
        """Return the length of a window that suffices for the interval of a figure, in seconds.

        Args:
            ratio: Ratio of the long-run variance to that of independent samples.
            beyond: Share of the samples that decide: those beyond a quantile, or those that make half of the variance
                of a mean.
        """
        memories = max(ENOUGH_MEMORIES, MEMORIES_BEYOND / beyond)
        if ratio <= HARDLY_DEPENDENT:
            memories = UNSEEN_MEMORIES if beyond < _FEW_SAMPLES else ENOUGH_MEMORIES
        return self.length_s * memories / self.memories


def span_of(
    start_s: float, length_s: float, due_s: Floats, in_flight: Floats, latencies: Iterable[tuple[Floats, Floats]]
) -> MeasuredSpan:
    """Return the window with its memory: the longest among requests in flight and latencies, at least `relaxation_s`.

    Args:
        start_s, length_s: The window.
        due_s: Due times of the requests of the window. [requests]
        in_flight: Requests in flight at the middle of each of `BINS` equal parts of the window. [BINS]
        latencies: Values of each metric (NaN if missing), and the due times of their requests.
    """
    signals = [in_flight, *(level_over_time(values, t_s, start_s, length_s) for values, t_s in latencies)]
    longest_s = max(length_s / signal.size * autocorrelation_time(signal) for signal in signals if signal.size)
    return MeasuredSpan(start_s, length_s, max(longest_s, relaxation_s(length_s, due_s, in_flight)))


def relaxation_s(length_s: float, due_s: Floats, in_flight: Floats) -> float:
    """Return the least memory that the variance of the requests in flight implies, in seconds.

    The integrated autocorrelation time of a reversible process is at least 4 * variance / (mean square of its jumps per
    second), by Jensen's inequality over its relaxation rates. The jumps are known exactly: one for each time at which
    requests are due, and one for each end. So the bound scatters less than sums of autocorrelations. It is the memory
    itself, twice an answer, for servers without a queue, and about half of the memory for a single server.

    Args:
        length_s, due_s, in_flight: As in `span_of`.
    """
    if due_s.size == 0:
        return 0.0
    together = np.unique(due_s, return_counts=True)[1].astype(np.float64)
    square_per_s = (float(together @ together) + due_s.size) / length_s
    return RELAXATION * 4.0 * float(in_flight.var()) / square_per_s


def middles_s(start_s: float, length_s: float) -> Floats:
    """Return the middle of each of `BINS` equal parts of a window, in seconds."""
    return np.asarray(start_s + (np.arange(BINS) + 0.5) * (length_s / BINS), dtype=np.float64)


def level_over_time(values: Floats, t_s: Floats, start_s: float, length_s: float) -> Floats:
    """Return the mean logarithm of positive values in equal bins of time, a few values each; gaps are interpolated.

    Single values scatter, which hides a slow change.
    """
    usable = np.isfinite(values) & (values > 0.0)
    bins = min(int(np.count_nonzero(usable)) // _REQUESTS_PER_BIN, BINS)
    if bins < _MIN_BINS:
        return np.empty(0)
    index = np.clip(((t_s[usable] - start_s) * (bins / length_s)).astype(np.int64), 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    sums = np.bincount(index, weights=np.log(values[usable]), minlength=bins)
    filled = np.flatnonzero(counts)
    return np.asarray(np.interp(np.arange(bins), filled, sums[filled] / counts[filled]), dtype=np.float64)


def share_bounds(share: float, count: float) -> tuple[float, float]:
    """Return exact binomial bounds (Clopper and Pearson 1934) of a share, with a fractional effective count.

    Korn and Graubard (1998) use them for shares whose samples depend on each other.
    """
    hits, tail = share * count, (1.0 - CONFIDENCE) / 2.0
    low = 0.0 if hits <= 0.0 else float(betaincinv(hits, count - hits + 1.0, tail))
    high = 1.0 if hits >= count else float(betaincinv(hits + 1.0, count - hits, 1.0 - tail))
    return low, high
