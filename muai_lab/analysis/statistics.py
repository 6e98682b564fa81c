"""Figures of one run with their intervals, and replicates of them for the comparison of two runs.

Neighbouring requests share a queue and a batch, so their latencies are no independent samples. Intervals come from the
long-run variance over time (see `dependence`); a window that is too short has none. Replicates are drawn from whole
blocks of time that do not overlap (Carlstein 1986; Künsch 1989). A block contains all requests that were due in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from muai_lab.analysis.dependence import (
    CONFIDENCE,
    LEAST_RATIO,
    MeasuredSpan,
    share_bounds,
)
from muai_lab.arrays import Floats, Ints

SAMPLES_BEYOND = 5
"""Samples that must lie beyond a reported quantile: p99 needs 500 samples, p95 100, p90 50, p50 10."""

QUANTILES: tuple[float, ...] = (0.50, 0.90, 0.95, 0.99)
REPLICATES = 1000
MIN_BLOCKS = 10
MAX_BLOCKS = 50
_WIDEST = 0.9  # of a mean, on one side: a wider interval is useless, and a width of 1 has no upper end
_MAX_BINS = 4096  # more samples than this share bins of equal count: 0.024 % of rank, far below any interval


def min_samples(quantile: float) -> int:
    """Return the fewest samples with which `quantile` (0 < q < 1) is reported: `SAMPLES_BEYOND` of them beyond it."""
    return math.ceil(SAMPLES_BEYOND / min(quantile, 1.0 - quantile) - 1e-9)


def quantile_name(quantile: float) -> str:
    """Return the name of a quantile: `p50`, `p99`, `p99.9`."""
    return f"p{quantile * 100:.6g}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval of confidence `CONFIDENCE`.

    Attributes:
        value: The value; None if missing.
        low, high: Ends of the interval; None without one.
        needs_s: Seconds of the shortest window with an interval; None if there is one, or if that is unknown.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    needs_s: float | None = None

    @property
    def half_width(self) -> float | None:
        """The larger half of the interval, relative to the value; None without an interval."""
        if not self.value or self.low is None or self.high is None:
            return None
        return max(self.high - self.value, self.value - self.low) / abs(self.value)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and quantiles of one sample, each with its interval. A quantile with too few samples has no value."""

    samples: int
    mean: Estimate
    quantiles: dict[str, Estimate]
    minimum: float | None
    maximum: float | None


@dataclass(frozen=True, slots=True)
class Blocks:
    """The measurement window in blocks of equal length, and the draws of each replicate.

    Attributes:
        start_s, length_s: Start of the first block, and length of each.
        count: Number of blocks.
        weights: Times that each replicate drew each block; a row sums to `count`. [replicates, count]
    """

    start_s: float
    length_s: float
    count: int
    weights: Floats

    def of(self, t_s: Floats) -> Ints:
        """Return the index of the block of each time; times outside the window belong to the outermost blocks."""
        index = np.floor((t_s - self.start_s) / self.length_s).astype(np.int64)
        return np.clip(index, 0, self.count - 1)


def make_blocks(start_s: float, end_s: float, *, correlation_s: float = 0.0, seed: int = 0) -> Blocks:
    """Cut the window `[start_s, end_s)` into blocks and draw the replicates.

    Args:
        start_s, end_s: The window.
        correlation_s: Memory of the run (see `memory.run_span`). A block is at least twice that, as long as
            `MIN_BLOCKS` blocks remain.
        seed: Equal seeds give equal replicates, so the figures of one run share them.

    Raises:
        ValueError: The window has no positive length.
    """
    duration = end_s - start_s
    if not duration > 0:
        raise ValueError(f"a window needs a positive length, got {duration} s")
    wanted = MAX_BLOCKS if not correlation_s > 0 else int(duration / (2.0 * correlation_s))
    count = min(max(wanted, MIN_BLOCKS), MAX_BLOCKS)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=REPLICATES)
    return Blocks(start_s, duration / count, count, draws.astype(np.float64))


def bootstrap_quantiles(values: Floats, block_of: Ints, blocks: Blocks, quantiles: Sequence[float]) -> Floats:
    """Return quantiles of every replicate, by linear interpolation as in `numpy.quantile`.

    In a replicate, the values of a block occur once for each draw of the block. No replicate is materialised: one
    matrix product multiplies the counts per block and rank with the draws.

    Args:
        values: The sample. [samples]
        block_of: Block of each value. [samples]
        blocks: The blocks.
        quantiles: Quantiles between 0 and 1.

    Returns:
        [quantiles, replicates]
    """
    order = np.argsort(values)
    ranked = values[order]
    bins = min(ranked.size, _MAX_BINS)
    bin_of = (np.arange(ranked.size) * bins) // ranked.size
    counts = np.bincount(block_of[order] * bins + bin_of, minlength=blocks.count * bins).reshape(blocks.count, bins)
    first = np.searchsorted(bin_of, np.arange(bins), side="left")
    last = np.searchsorted(bin_of, np.arange(bins), side="right") - 1
    representative = ranked[(first + last) // 2]
    below = np.cumsum(blocks.weights @ counts, axis=1)  # samples up to and including each bin
    totals = below[:, -1]
    # One searchsorted for all rows: shift each row above the one before.
    stride = float(totals.max()) + 1.0
    offsets = np.arange(below.shape[0]) * stride
    flat = (below + offsets[:, None]).ravel()
    row_start = np.arange(below.shape[0]) * bins
    result = np.full((len(quantiles), below.shape[0]), np.nan)
    drawn = totals > 0
    for index, quantile in enumerate(quantiles):
        position = np.maximum((totals - 1.0) * quantile, 0.0)
        whole = np.floor(position)
        lower = representative[np.clip(np.searchsorted(flat, whole + offsets, side="right") - row_start, 0, bins - 1)]
        next_rank = np.minimum(whole + 1.0, np.maximum(totals - 1.0, 0.0)) + offsets
        upper = representative[np.clip(np.searchsorted(flat, next_rank, side="right") - row_start, 0, bins - 1)]
        result[index] = np.where(drawn, lower + (upper - lower) * (position - whole), np.nan)
    return result


def describe(
    values: Floats,
    t_s: Floats,
    span: MeasuredSpan,
    *,
    quantiles: Sequence[float] = QUANTILES,
    independent: int | None = None,
) -> Distribution:
    """Return mean and quantiles of a sample, with intervals.

    Args:
        values: The sample; NaN is left out. [samples]
        t_s: Time of each value, seconds. [samples]
        span: The window.
        quantiles: Quantiles between 0 and 1.
        independent: Number of samples that counts for the minimum if they come in groups (for token gaps, the number of
            requests). By default each value counts.
    """
    present = np.isfinite(values)
    values, t_s = values[present], t_s[present]
    enough_for = values.size if independent is None else min(values.size, independent)
    nothing = Estimate(None)
    if values.size == 0:
        return Distribution(0, nothing, {quantile_name(q): nothing for q in quantiles}, None, None)
    given = [q for q in quantiles if enough_for >= min_samples(q)]
    estimates = {quantile_name(q): nothing for q in quantiles}
    ranked = np.sort(values)
    ratio = _dependence(values - values.mean(), t_s, span)
    for quantile, point in zip(given, np.quantile(ranked, given), strict=True):
        estimates[quantile_name(quantile)] = _quantile(quantile, float(point), values, ranked, t_s, span, ratio)
    mean = _mean(values, t_s, span, ratio) if given else Estimate(float(values.mean()))
    return Distribution(values.size, mean, estimates, float(ranked[0]), float(ranked[-1]))


def _dependence(deviations: Floats, t_s: Floats, span: MeasuredSpan) -> float:
    """Return the ratio of the long-run variance of a sum to that of independent samples; 0 for a constant."""
    independent = float(deviations @ deviations)
    return span.long_run_variance(deviations, t_s) / independent if independent > 0.0 else 0.0


def _mean(values: Floats, t_s: Floats, span: MeasuredSpan, ratio: float) -> Estimate:
    """Return the mean, with an interval that is symmetric on the scale of its reciprocal.

    The latency of a queue is proportional to the reciprocal of its spare capacity. So the standard error of a mean
    grows with the square of the mean, and its reciprocal has a constant standard error.
    """
    value = float(values.mean())
    needs_s = span.needed_s(ratio, 2.0 * _deciding(values))
    if needs_s > span.length_s:
        return Estimate(value, needs_s=needs_s)
    width = span.t(ratio) * math.sqrt(max(ratio, LEAST_RATIO) * float(values.var()) / values.size)
    if value <= 0.0:
        return Estimate(value, value - width, value + width)
    if width >= _WIDEST * value:
        return Estimate(value, needs_s=span.length_s * (width / (_WIDEST * value)) ** 2)
    return Estimate(value, value / (1.0 + width / value), value / (1.0 - width / value))


def _deciding(values: Floats) -> float:
    """Return the share of outermost samples that make half of the variance: 4 % for an exponential distribution."""
    made = np.cumsum(np.sort((values - values.mean()) ** 2)[::-1])
    return (float(np.searchsorted(made, made[-1] / 2.0)) + 1.0) / values.size


def _quantile(
    q: float, point: float, values: Floats, ranked: Floats, t_s: Floats, span: MeasuredSpan, ratio_of_mean: float
) -> Estimate:
    """Return a quantile; its interval is between the ranks at the bounds of the share below it (Woodruff 1952).

    A run without a backlog shows no dependence in its tail, so the dependence of the mean counts, too.
    """
    below = (values <= point).astype(np.float64)
    ratio = _dependence(below - below.mean(), t_s, span)
    needs_s = span.needed_s(max(ratio, ratio_of_mean), min(q, 1.0 - q))
    if needs_s > span.length_s:
        return Estimate(point, needs_s=needs_s)
    low, high = _share_bounds(q, values.size, ratio, span)
    first, last = math.floor(low * values.size) - 1, math.ceil(high * values.size)
    if first < 0 or last >= values.size:  # too few samples beyond: the interval would reach past the extremes
        return Estimate(point, needs_s=2.0 * span.length_s)
    return Estimate(point, float(ranked[first]), float(ranked[last]))


def _share_bounds(share: float, samples: int, ratio: float, span: MeasuredSpan) -> tuple[float, float]:
    """Return bounds of a share. ratio: Variance of the number of hits ÷ that of independent samples."""
    normal = float(ndtri(0.5 + CONFIDENCE / 2.0))
    return share_bounds(share, samples / max(ratio, LEAST_RATIO) * (normal / span.t(ratio)) ** 2)


def rate(amounts: Floats, t_s: Floats, span: MeasuredSpan) -> Estimate:
    """Return the sum of the amounts in the window ÷ window, per second, with its interval.

    Args:
        amounts: One per event: 1 for a request, its tokens for a chunk. All are inside the window. [events]
        t_s: Time of each event, seconds. [events]
        span: The window.
    """
    total = float(amounts.sum())
    value = total / span.length_s
    if amounts.size < min_samples(0.5) or not total > 0.0:
        return Estimate(value)
    variance = span.long_run_variance_of_count(amounts, t_s)
    ratio = variance / float(amounts @ amounts)
    needs_s = span.needed_s(ratio)
    if needs_s > span.length_s:
        return Estimate(value, needs_s=needs_s)
    factor = math.exp(span.t(ratio) * math.sqrt(variance) / total)
    return Estimate(value, value / factor, value * factor)


def share(hits: NDArray[np.bool_], t_s: Floats, span: MeasuredSpan) -> Estimate:
    """Return the share of the events that are hits (0 to 1), with its interval; no value without events.

    If all or none hit, the events show no spread: each memory of the window then counts as one sample.

    Args:
        hits: True for each hit. [events]
        t_s: Time of each event, seconds. [events]
        span: The window.
    """
    if hits.size == 0:
        return Estimate(None)
    value = float(hits.mean())
    if value in (0.0, 1.0):
        return Estimate(value, *share_bounds(value, min(float(hits.size), span.memories)))
    if hits.size < min_samples(0.5):
        return Estimate(value)
    ratio = _dependence(hits.astype(np.float64) - value, t_s, span)
    needs_s = span.needed_s(ratio, min(value, 1.0 - value))
    if needs_s > span.length_s:
        return Estimate(value, needs_s=needs_s)
    return Estimate(value, *_share_bounds(value, hits.size, ratio, span))
