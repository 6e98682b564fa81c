"""Quantiles that are given only with enough samples, and intervals from a block bootstrap over time.

Latencies of neighbouring requests resemble each other (they share a queue and a batch), so resampling single requests
would give intervals that are far too narrow. Whole blocks of time are resampled instead (Künsch 1989; here the simple
variant with blocks that do not overlap, as in Carlstein 1986), each with everything that fell due in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SAMPLES_BEYOND = 5
"""Samples that must lie beyond a quantile before it is given: p99 then needs 500 samples, p95 100, p90 50, p50 10."""

QUANTILES: tuple[float, ...] = (0.50, 0.90, 0.95, 0.99)
CONFIDENCE = 0.95
REPLICATES = 1000
MIN_BLOCKS = 10
MAX_BLOCKS = 50
_MAX_BINS = 4096  # more samples than this are put into bins of equal count: 0.024 % of rank, far below any interval


def min_samples(quantile: float) -> int:
    """Fewest samples with which `quantile` (0 < q < 1) is given: `SAMPLES_BEYOND` of them beyond it."""
    return math.ceil(SAMPLES_BEYOND / min(quantile, 1.0 - quantile) - 1e-9)


def quantile_name(quantile: float) -> str:
    """`p50`, `p99`, `p99.9`."""
    return f"p{quantile * 100:.6g}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval of confidence `CONFIDENCE`; None where it cannot be given."""

    value: float | None
    low: float | None = None
    high: float | None = None


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
    """The measurement window cut into blocks of equal length, and how often each replicate drew each of them.

    weights: [replicates, count]; a row sums to `count`.
    """

    start_s: float
    length_s: float
    count: int
    weights: Floats

    def of(self, t_s: Floats) -> Ints:
        """Index of the block of each time; times at the very edges belong to the outermost blocks."""
        index = np.floor((t_s - self.start_s) / self.length_s).astype(np.int64)
        return np.clip(index, 0, self.count - 1)


def make_blocks(start_s: float, end_s: float, *, correlation_s: float = 0.0, seed: int = 0) -> Blocks:
    """Cut the window `[start_s, end_s)` into blocks and draw the replicates.

    correlation_s: how long one request influences others, about one end-to-end latency; a block is at least twice that,
    as long as `MIN_BLOCKS` blocks remain. The same seed gives the same replicates, so figures of one run share them.
    """
    duration = end_s - start_s
    if not duration > 0:
        raise ValueError(f"a window needs a positive length, got {duration} s")
    wanted = MAX_BLOCKS if not correlation_s > 0 else int(duration / (2.0 * correlation_s))
    count = min(max(wanted, MIN_BLOCKS), MAX_BLOCKS)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=REPLICATES)
    return Blocks(start_s, duration / count, count, draws.astype(np.float64))


def _interval(replicates: Floats) -> tuple[float | None, float | None]:
    finite = replicates[np.isfinite(replicates)]
    if finite.size < REPLICATES // 2:
        return None, None
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return float(low), float(high)


def bootstrap_quantiles(values: Floats, block_of: Ints, blocks: Blocks, quantiles: Sequence[float]) -> Floats:
    """Quantiles (linear interpolation, as `numpy.quantile`) of every replicate: [quantiles, replicates].

    A replicate is the sample in which the values of block b occur as often as b was drawn; it is never written out:
    the counts per block and rank are multiplied with the draws in one matrix product.
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
    blocks: Blocks,
    *,
    quantiles: Sequence[float] = QUANTILES,
    independent: int | None = None,
) -> Distribution:
    """Mean and quantiles of `values`, observed at `t_s`, with intervals.

    NaN values are left out. independent: how many samples count for the minimum when they come in groups (token gaps of
    the same request: the number of requests); default: each value.
    """
    present = np.isfinite(values)
    values, t_s = values[present], t_s[present]
    enough_for = values.size if independent is None else min(values.size, independent)
    nothing = Estimate(None)
    if values.size == 0:
        return Distribution(0, nothing, {quantile_name(q): nothing for q in quantiles}, None, None)
    block_of = blocks.of(t_s)
    given = [q for q in quantiles if enough_for >= min_samples(q)]
    estimates = {quantile_name(q): nothing for q in quantiles}
    mean = Estimate(float(values.mean()))
    if given:
        replicates = bootstrap_quantiles(values, block_of, blocks, given)
        for quantile, point, sample in zip(given, np.quantile(values, given), replicates, strict=True):
            estimates[quantile_name(quantile)] = Estimate(float(point), *_interval(sample))
        sums = blocks.weights @ np.bincount(block_of, weights=values, minlength=blocks.count)
        counts = blocks.weights @ np.bincount(block_of, minlength=blocks.count)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = Estimate(mean.value, *_interval(np.where(counts > 0, sums / counts, np.nan)))
    return Distribution(values.size, mean, estimates, float(values.min()), float(values.max()))


def rate(amounts: Floats, t_s: Floats, blocks: Blocks) -> Estimate:
    """Sum of `amounts` that fell into the window ÷ window (per second), with its interval.

    amounts, t_s: one entry per event (a request: amount 1; a chunk: its tokens), all of them inside the window.
    """
    per_block = np.bincount(blocks.of(t_s), weights=amounts, minlength=blocks.count)
    duration = blocks.count * blocks.length_s
    value = float(per_block.sum() / duration)
    if amounts.size < min_samples(0.5):
        return Estimate(value)
    return Estimate(value, *_interval(blocks.weights @ per_block / duration))


def share(hits: NDArray[np.bool_], t_s: Floats, blocks: Blocks) -> Estimate:
    """Share of the events that are hits (0 to 1), with its interval; no value without events.

    Where all or none hit, resampling shows no spread, so the exact binomial bound is used (Clopper and Pearson 1934).
    """
    if hits.size == 0:
        return Estimate(None)
    value = float(hits.mean())
    if value in (0.0, 1.0):
        bound = ((1.0 - CONFIDENCE) / 2.0) ** (1.0 / hits.size)
        return Estimate(value, bound, 1.0) if value == 1.0 else Estimate(value, 0.0, 1.0 - bound)
    if hits.size < min_samples(0.5):
        return Estimate(value)
    block_of = blocks.of(t_s)
    counts = blocks.weights @ np.bincount(block_of, minlength=blocks.count)
    sums = blocks.weights @ np.bincount(block_of, weights=hits.astype(np.float64), minlength=blocks.count)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Estimate(value, *_interval(np.where(counts > 0, sums / counts, np.nan)))
