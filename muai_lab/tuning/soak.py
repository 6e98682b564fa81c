"""Soak windows: continuous load on one server, long enough that a longer run would show the same.

A block of a few seconds from an idle server shows little about an SLO under open-loop load: an overloaded server
survives the first seconds. A soak window is preceded by a lead-in, lasts at least `RELAXATIONS` relaxation times of the
latency that the SLO bounds, and must not end with a growing backlog.

Requests that miss an SLO come in clusters, since they share a queue. The bound of the attainment counts clusters, not
requests: misses follow a compound Poisson process, whose mean has the exact bound of a Poisson mean (Garwood 1936) in
units of the cluster size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv, stdtrit

from muai_lab.analysis.dependence import autocorrelation_time
from muai_lab.arrays import Floats
from muai_lab.tuning.block_result import BlockResult, attainment

RELAXATIONS = 20.0
"""Relaxation times that a window must last. One-sided: an exponential memory of 1 s has a relaxation time of 1 s."""

LEAD_IN = 0.2
"""Length of the lead-in before a window, relative to the window: four relaxation times or more."""

LOW_TAIL = 0.025
_GROWTH_TAIL = 0.01
_SMALLEST_GROWTH = 3.0  # requests
_SLACK_LIMIT = 4.0  # a request that failed counts as one that took four times its bound
_RESOLUTION = 1e-9
_GRID = 512  # times at which requests in flight are counted
_ANSWERS = 10.0
_ENOUGH_WINDOWS = 3


@dataclass(frozen=True, slots=True)
class Soak:
    """One soak window.

    slices: The window in parts of equal length, by due time. relaxation_s: Relaxation time of the judged latency.
    cluster: The same in requests, which share their fate. answer_s: Mean time of an answer. backlog:
    Growth of the requests in flight over the window, fitted. growing: True if that is more than chance explains.
    completed_per_s: Requests that ended in the window, per second. level, variance: Of the judged latencies, relative
    to their bound.
    """

    seconds: float
    slices: tuple[BlockResult, ...]
    relaxation_s: float
    cluster: float
    answer_s: float
    backlog: float
    growing: bool
    completed_per_s: float
    level: float = 0.0
    variance: float = 0.0

    @property
    def needed_s(self) -> float:
        """The length that a window needs by what this one shows."""
        return max(RELAXATIONS * self.relaxation_s, _ANSWERS * self.answer_s)

    @property
    def grown_steadily(self) -> bool:
        """True if the backlog grew after a lead-in that was long enough to fill the batch, two answers or more."""
        return self.growing and self.seconds >= _ANSWERS * self.answer_s

    @property
    def long_enough(self) -> bool:
        """True if the window lasted long enough for its own memory."""
        return self.seconds >= self.needed_s


@dataclass(frozen=True, slots=True)
class Attainment:
    """Share of the requests that met the SLO, over all windows, with its lower bound (95 % interval, lower end).

    windows: Number of windows, each of `seconds`, which lasted at least `relaxations` relaxation times.
    """

    value: float
    low: float
    windows: int = 0
    seconds: float = 0.0
    relaxations: float | None = None


@dataclass(frozen=True, slots=True)
class Missed:
    """Share of the requests that met the SLO: mean over runs, and the upper end of its 95 % interval."""

    value: float
    high: float


def missed_by(shares: Sequence[float]) -> Missed | None:
    """Return the mean attainment of runs with its upper end; None from a single run.

    The upper end is Student's t over the runs. Near capacity attainments are skewed to the left: a mean that is low by
    chance comes from runs that scatter widely, so that the upper end errs on the high side.

    Args:
        shares: Attainment of each run, each on a server that was started for it.
    """
    if len(shares) < 2:
        return None
    mean = float(np.mean(shares))
    reach = -float(stdtrit(len(shares) - 1, LOW_TAIL)) * float(np.std(shares, ddof=1)) / math.sqrt(len(shares))
    return Missed(mean, min(mean + reach, 1.0))


def soak_of(
    due_s: Floats,
    over_s: Floats,
    slack: Floats,
    slices: Sequence[BlockResult],
    seconds: float,
    *,
    stationary: bool = True,
) -> Soak:
    """Judge one window.

    Args:
        due_s: Due times of all requests of the load, seconds from the start of the window; negative in the lead-in.
        over_s: End of each of them on the same clock; NaN if it never ended.
        slack: The latency that the SLO bounds, relative to its bound, of each of them; NaN or infinite if it failed.
        slices: The window in parts of equal length.
        seconds: Length of the window.
        stationary: False if the offered rate changes by itself, so that a growing backlog proves nothing.
    """
    from muai_lab.analysis.window import in_flight_at  # pandas, which no mistake in the input should wait for

    inside = (due_s >= 0.0) & (due_s < seconds)
    order = np.argsort(due_s[inside], kind="stable")
    judged = np.minimum(np.nan_to_num(slack[inside][order], nan=_SLACK_LIMIT, posinf=_SLACK_LIMIT), _SLACK_LIMIT)
    cluster = max(relaxation(judged), 1.0)
    ended = np.where(np.isfinite(over_s), over_s, np.inf)
    answers = np.minimum(ended[inside], seconds) - due_s[inside]
    at_s = (np.arange(_GRID) + 0.5) / _GRID * seconds
    backlog, growing = growth(in_flight_at(due_s, ended, at_s))
    return Soak(
        seconds=seconds,
        slices=tuple(slices),
        relaxation_s=cluster * seconds / max(len(judged), 1),
        cluster=cluster,
        answer_s=float(answers.mean()) if len(answers) else 0.0,
        backlog=backlog,
        growing=growing and stationary,
        completed_per_s=float(((ended >= 0.0) & (ended < seconds)).sum() / seconds),
        level=float(judged.mean()) if len(judged) else 0.0,
        variance=float(judged.var()) if len(judged) else 0.0,
    )


def relaxation(series: Floats) -> float:
    """Return the one-sided integrated autocorrelation time of a series, in samples; 0.5 for independent samples."""
    count = len(series)
    if count < 4 or float(np.ptp(series)) <= _RESOLUTION * float(np.abs(series).max()):
        return 0.5
    found = autocorrelation_time(series) / 2.0
    # The mean is taken from the same window, which hides a part of a memory that is not short against it.
    return found / max(1.0 - 2.0 * found / count, 0.25)


def growth(flying: Floats) -> tuple[float, bool]:
    """Return the fitted change of equally spaced counts from first to last, and if it is a rise beyond chance."""
    count = len(flying)
    place = np.arange(count) - (count - 1) / 2.0
    slope = float((place * flying).sum() / np.square(place).sum())
    rest = flying - flying.mean() - slope * place
    memory = 2.0 * relaxation(rest)
    effective = count / memory
    change = slope * (count - 1)
    if change < _SMALLEST_GROWTH:
        return change, False
    error = math.sqrt(12.0 * float(np.square(rest).mean()) / effective)
    return change, change > -float(stdtrit(max(effective - 2.0, 1.0), _GROWTH_TAIL)) * error


def attained(blocks: Sequence[BlockResult], cluster: float, tail: float = LOW_TAIL) -> tuple[float, float]:
    """Return the share of the requests that met the SLO, and its lower bound.

    Args:
        blocks: Parts of the windows, each long against the memory.
        cluster: Requests that share their fate, by their latencies. It counts as one part with misses: the misses of
            many parts outweigh it.
        tail: Chance that the truth lies below the bound.
    """
    due = sum(block.due for block in blocks)
    if not due:
        return 0.0, 0.0
    kept = attainment(blocks)
    misses = due * (1.0 - kept)
    size = max(_cluster_of_misses(blocks, kept, cluster), 1.0)
    worst = size * float(gammaincinv(misses / size + 1.0, 1.0 - tail)) / due
    return kept, max(1.0 - worst, 0.0)


def shared_relaxation_s(soaks: Sequence[Soak]) -> float:
    """Return the relaxation time that several windows of one configuration show, in seconds.

    If the relaxation time is not short against a window, the window's own mean hides a part of it. The means of several
    windows show it: their variance is 2 relaxation times / window of that of a single request. The longer time counts.
    """
    within = float(np.mean([soak.relaxation_s for soak in soaks]))
    if len(soaks) < _ENOUGH_WINDOWS:
        return within
    levels = np.array([soak.level for soak in soaks])
    between = float(levels.var(ddof=1))
    total = float(np.mean([soak.variance for soak in soaks])) + between
    seconds = float(np.mean([soak.seconds for soak in soaks]))
    return max(within, seconds * between / (2.0 * total)) if total > _RESOLUTION else within


def attainment_of(soaks: Sequence[Soak], served: Sequence[BlockResult]) -> Attainment:
    """Return the attainment with its lower bound.

    Args:
        soaks: Soak windows; may be empty.
        served: All blocks; the slices of the soak windows if there are any. A block with a drain after it is one part,
            and the requests in flight together share a fate.
    """
    if not soaks:
        kept, low = attained(served, _in_flight(served))
        return Attainment(kept, low, len(served), served[0].seconds if served else 0.0)
    memory_s = shared_relaxation_s(soaks)
    seconds = min(soak.seconds for soak in soaks)
    due = sum(block.due for block in served)
    kept, low = attained(served, due / sum(soak.seconds for soak in soaks) * memory_s)
    return Attainment(kept, low, len(soaks), seconds, seconds / memory_s if memory_s else None)


def not_kept(soaks: Sequence[Soak], kept: Attainment, quantile: float) -> str | None:
    """Return why the windows do not show that the SLO is kept in a longer run; None if they do."""
    if len(growing := _growing(soaks)) >= _enough(soaks):
        grown = float(np.mean([soak.backlog for soak in growing]))
        windows = f"{len(growing)} of {len(soaks)} soak windows"
        return f"the backlog grew in {windows}, by {grown:.0f} requests in {kept.seconds:.0f} s"
    if (needed_s := longer_s(soaks)) is not None:
        return (
            f"its queue remembers too long for soak windows of {kept.seconds:.0f} s: {needed_s:.0f} s would tell "
            "(tuning.soak_s, tuning.soak_most_s)"
        )
    if kept.low < quantile:
        return (
            f"{kept.value:.2%} of its requests met the SLO, but in a long run it may be as few as {kept.low:.2%}, "
            f"and {quantile:.2%} are asked for (longer windows tell more: tuning.soak_s)"
        )
    return None


def longer_s(soaks: Sequence[Soak]) -> float | None:
    """Return the length that windows need by the memory of all of them; None if it is theirs, or if a backlog grew."""
    if not soaks or len(_growing(soaks)) >= _enough(soaks):
        return None
    answer_s = float(np.mean([soak.answer_s for soak in soaks]))
    needed_s = max(RELAXATIONS * shared_relaxation_s(soaks), _ANSWERS * answer_s)
    return needed_s if needed_s > min(soak.seconds for soak in soaks) else None


def _growing(soaks: Sequence[Soak]) -> list[Soak]:
    return [soak for soak in soaks if soak.growing]


def _enough(soaks: Sequence[Soak]) -> float:
    """Number of windows with a growing backlog that are more than chance."""
    return max(2, len(soaks) / 4.0)


def _in_flight(blocks: Sequence[BlockResult]) -> float:
    """Mean requests in flight (Little's law)."""
    seconds = sum(block.seconds for block in blocks)
    return sum(sum(block.latencies_s) for block in blocks) / seconds if seconds else 1.0


def _cluster_of_misses(blocks: Sequence[BlockResult], kept: float, cluster: float) -> float:
    missed = np.array([block.due - block.met for block in blocks], dtype=np.float64)
    due = np.array([block.due for block in blocks], dtype=np.float64)
    spread = float(np.square(missed - due * (1.0 - kept)).sum()) * len(blocks) / max(len(blocks) - 1, 1)
    hit = int((missed > 0).sum())
    if not hit:
        return cluster
    seen = spread / max(float((due * kept * (1.0 - kept)).sum()), 1e-9)
    return (hit * seen + cluster) / (hit + 1.0)
