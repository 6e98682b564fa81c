"""The comparison of two periods: better or worse, beyond the noise of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from muai_lab.stack.online.window import Block, Targets, total

LEAST_GAIN = 0.01
"""Smallest relative change that counts, however certain it is."""

CLEAR_DEVIATIONS = 3.0
"""Standard errors of a clear fall: it is tested again and again, so it must be surer than a gain."""

_FEW_BLOCKS = 5  # below this number their spread says little
_HOPELESS = 0.5  # attainment below which a queue is assumed to be the cause, not the pace of the configuration


@dataclass(frozen=True, slots=True)
class TrialComparison:
    """A trial compared with the interval before it.

    what: the compared quantity, with its unit. deviations: its rise in standard errors; negative if it fell.
    """

    what: str
    before: float
    after: float
    deviations: float

    def better(self, deviations: float) -> bool:
        """True if it rose by more than `deviations` standard errors, and by enough to matter."""
        return self.deviations > deviations and self.after - self.before > LEAST_GAIN * self.before

    def worse(self, deviations: float, *, least: float = LEAST_GAIN) -> bool:
        """True if it fell by more than `deviations` standard errors, and by more than the share `least`."""
        return -self.deviations > deviations and self.before - self.after > least * self.before

    def __str__(self) -> str:
        return f"{self.what} {self.before:.3g} -> {self.after:.3g} ({self.deviations:+.1f} standard errors)"


def compare(before: Sequence[Block], after: Sequence[Block], targets: Targets) -> TrialComparison:
    """Compare the objective in two periods, from their blocks.

    If requests arrive slower than they are served, goodput follows the arrivals. The configuration then only changes
    the share of good requests, which is compared. If both periods are saturated, a rate is compared: of output tokens
    without targets, else of good requests. If hardly any request is in time because of a long queue, the rate is
    that of requests that would be good without the queue: it drains the queue.
    """
    first, second = total(before), total(after)
    if not (first.saturated and second.saturated):
        if not targets.set:
            return _share(
                "share of arrivals served", before, after, lambda b: min(b.ended, b.arrived), lambda b: b.arrived
            )
        return _share("share of good requests", before, after, lambda b: b.good, lambda b: b.settled)
    if not targets.set:
        return _rate("output tokens/s", before, after, lambda block: block.output_tokens)
    if max(first.attainment, second.attainment) < _HOPELESS:
        return _rate("good but for the queue/s", before, after, lambda block: block.ready)
    return _rate("good requests/s", before, after, lambda block: block.good)


Count = Callable[[Block], int]


def _rate(what: str, before: Sequence[Block], after: Sequence[Block], count: Count) -> TrialComparison:
    (first, first_error), (second, second_error) = _mean_rate(before, count), _mean_rate(after, count)
    return TrialComparison(what, first, second, _in_errors(second - first, math.hypot(first_error, second_error)))


def _mean_rate(blocks: Sequence[Block], count: Count) -> tuple[float, float]:
    """Return the mean per second, and its error from the spread of the blocks.

    With few blocks the error is at least that of a Poisson count.
    """
    counts = [count(block) for block in blocks]
    seconds = sum(block.seconds for block in blocks)
    mean = sum(counts) / seconds
    error = 0.0
    if len(counts) > 1:
        variance = sum((one / block.seconds - mean) ** 2 for one, block in zip(counts, blocks, strict=True))
        error = math.sqrt(variance / (len(counts) - 1) / len(counts))
    if len(counts) < _FEW_BLOCKS:
        error = max(error, math.sqrt(sum(counts) + 1) / seconds)
    return mean, error


def _share(what: str, before: Sequence[Block], after: Sequence[Block], part: Count, whole: Count) -> TrialComparison:
    """Compare a share in two ways; the one with more standard errors counts.

    The pooled share shows a change of size. If bad requests come in bursts, a single burst makes it too uncertain. The
    ranks of the blocks then show that bursts have become rarer.
    """
    (first, first_error), (second, second_error) = _pooled(before, part, whole), _pooled(after, part, whole)
    pooled = _in_errors(second - first, math.hypot(first_error, second_error))
    ranked = _rank_deviation(*([part(b) / whole(b) for b in side if whole(b)] for side in (before, after)))
    same_way = pooled * ranked > 0
    return TrialComparison(what, first, second, ranked if same_way and abs(ranked) > abs(pooled) else pooled)


def _pooled(blocks: Sequence[Block], part: Count, whole: Count) -> tuple[float, float]:
    """Return the share over all blocks, and its error.

    The error is the larger of two: the spread of the blocks around the common ratio (a ratio estimator: Cochran,
    "Sampling Techniques", 1977, chapter 6), and that of independent requests (with Laplace's rule, so it is not 0 if
    all are good).
    """
    parts, wholes = sum(map(part, blocks)), sum(map(whole, blocks))
    if not wholes:
        return 1.0, 1.0
    share = parts / wholes
    smoothed = (parts + 1) / (wholes + 2)
    independent = math.sqrt(smoothed * (1 - smoothed) / wholes)
    count = len(blocks)
    if count < 2:
        return share, independent
    residuals = sum((part(block) - share * whole(block)) ** 2 for block in blocks)
    return share, max(independent, math.sqrt(residuals * count / (count - 1)) / wholes)


def _rank_deviation(before: Sequence[float], after: Sequence[float]) -> float:
    """Return by how many standard errors the ranks of `after` are above chance.

    Mann and Whitney, "On a Test of Whether one of Two Random Variables is Stochastically Larger than the Other" (1947),
    in the normal approximation, with the correction for ties.
    """
    first, second = len(before), len(after)
    if not first or not second:
        return 0.0
    wins = sum((late > early) + 0.5 * (late == early) for late in after for early in before)
    both = [*before, *after]
    ties = sum(size**3 - size for size in (both.count(value) for value in set(both)))
    count = first + second
    variance = first * second / 12 * (count + 1 - ties / (count * (count - 1)))
    return _in_errors(wins - first * second / 2, math.sqrt(max(variance, 0.0)))


def _in_errors(difference: float, error: float) -> float:
    if not difference:
        return 0.0
    return difference / error if error else math.copysign(math.inf, difference)
