"""The running limit of `adaptive_batching`: how many sequences may run at this moment.

Pure decisions over the steps that the scheduler has seen. A change is judged only by steps in which it had taken
effect: after a cut, the sequences above the limit first run to their end; after a raise, the batch first fills up.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Final

from muai_lab.stack.events import Event, LimitMoved
from muai_lab.stack.limits import BatchLimits

# Decisions on latency: enough steps that one slow step is not yet a p95, enough gaps that there is one.
_STEPS: Final = 16
_GAPS: Final = 40
_RAISE_BELOW: Final = 0.9  # of the target
_DEEPEST_CUT, _GENTLEST_CUT = 0.5, 0.9

# Decisions on throughput: both sides of a comparison are this many blocks of this many steps.
_BLOCK_STEPS: Final = 32
_BLOCKS: Final = 6
_LADDER: Final = 0.75  # from one limit to the next lower one that is tried
_LEAST_GAIN: Final = 0.03
_T_95: Final = 2.23  # Student's t, two-sided 95 %, 2 × 6 - 2 degrees of freedom
_FIRST_PAUSE, _LONGEST_PAUSE = 8, 512  # blocks between two trials without a gain


@dataclass(frozen=True, slots=True)
class StepSeen:
    """One step, as the running limit sees it. Times in monotonic seconds.

    tokens: output tokens produced. running: sequences that ran. waited: True if only the limit kept requests waiting.
    """

    began: float
    ended: float
    tokens: int
    running: int
    waited: bool


class RunningLimit(ABC):
    """Most sequences that may run at this moment."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self.current = limits.max_batch_size

    def set_limits(self, limits: BatchLimits) -> None:
        """Keep the limit within other bounds from now on."""
        self.limits = limits
        self.current = min(max(self.current, limits.min_batch_size), limits.max_batch_size)

    @abstractmethod
    def observe(self, step: StepSeen, gaps_s: list[float]) -> str | None:
        """Take in a step. Returns why the limit moved, None if it stays.

        gaps_s: inter-token gaps that ended with this step, in seconds.
        """


class FixedLimit(RunningLimit):
    """Always the configured maximum."""

    def set_limits(self, limits: BatchLimits) -> None:
        """See `RunningLimit.set_limits`."""
        self.limits, self.current = limits, limits.max_batch_size

    def observe(self, step: StepSeen, gaps_s: list[float]) -> str | None:
        """Keep the limit."""
        return None


class LatencyLimit(RunningLimit):
    """Additive increase, multiplicative decrease on the p95 of inter-token latency against a target.

    The rule of Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in Computer
    Networks" (1989), with the cut in proportion to the excess: to target / p95, but to no less than half.
    """

    def __init__(self, limits: BatchLimits) -> None:
        super().__init__(limits)
        self._gaps_s: list[float] = []
        self._steps = 0
        self._hit = False

    def observe(self, step: StepSeen, gaps_s: list[float]) -> str | None:
        """See `RunningLimit.observe`."""
        if step.running > self.current:
            return None  # the last cut has not taken effect yet
        self._gaps_s += gaps_s
        self._steps += 1
        self._hit = self._hit or (step.waited and step.running >= self.current)
        if self._steps < _STEPS or len(self._gaps_s) < _GAPS:
            return None
        target_s = self.limits.latency_target_s
        assert target_s is not None
        p95_s = sorted(self._gaps_s)[math.ceil(0.95 * len(self._gaps_s)) - 1]
        before, hit = self.current, self._hit
        self._gaps_s.clear()
        self._steps, self._hit = 0, False
        if p95_s > target_s:
            factor = min(max(target_s / p95_s, _DEEPEST_CUT), _GENTLEST_CUT)
            self.current = max(self.limits.min_batch_size, min(before - 1, math.floor(before * factor)))
        elif hit and p95_s < _RAISE_BELOW * target_s:
            self.current = min(self.limits.max_batch_size, before + 1)
        if self.current == before:
            return None
        return f"p95 of the inter-token latency is {p95_s * 1e3:.1f} ms, the target {target_s * 1e3:g} ms"


@dataclass(slots=True)
class _Block:
    """Consecutive steps under one limit, all with requests waiting."""

    began: float = 0.0
    steps: int = 0
    tokens: int = 0


@dataclass(slots=True)
class _Side:
    """Throughput under one limit, in output tokens per second; one rate per block."""

    limit: int
    rates: list[float] = field(default_factory=list)


class ThroughputLimit(RunningLimit):
    """Hill climbing on measured throughput: the limit tries another value, and keeps it if it is faster.

    Only steps in which the limit is reached while requests wait count. A trial is kept if its mean exceeds the present
    one by more than Student's interval of the difference, and by more than 3 %. After a trial without a gain the next
    one waits twice as long.
    """

    def __init__(self, limits: BatchLimits) -> None:
        super().__init__(limits)
        self._present = _Side(self.current)
        self._trial: _Side | None = None
        self._block = _Block()
        self._down = True
        self._pause = 0  # blocks until the next trial
        self._next_pause = _FIRST_PAUSE

    def set_limits(self, limits: BatchLimits) -> None:
        """See `RunningLimit.set_limits`. Measurements under other bounds are dropped."""
        raised = limits.max_batch_size > self.limits.max_batch_size
        super().set_limits(limits)
        if raised:
            self.current = limits.max_batch_size
        self._present, self._trial, self._block = _Side(self.current), None, _Block()
        self._pause, self._next_pause = 0, _FIRST_PAUSE

    def observe(self, step: StepSeen, gaps_s: list[float]) -> str | None:
        """See `RunningLimit.observe`."""
        if not step.waited or step.running != self.current:
            self._block = _Block()  # not saturated, or the last change has not taken effect yet
            return None
        block = self._block
        if block.steps == 0:
            # A block begins at the end of a step: the time between two steps is part of the limit's cost.
            block.began, block.steps = step.ended, 1
            return None
        block.steps += 1
        block.tokens += step.tokens
        if block.steps <= _BLOCK_STEPS:
            return None
        self._block = _Block(step.ended, 1)
        return self._take(block.tokens / max(step.ended - block.began, 1e-9))

    def _take(self, rate: float) -> str | None:
        side = self._trial or self._present
        side.rates.append(rate)
        if self._trial is None:
            del side.rates[:-_BLOCKS]
            self._pause -= 1
            return self._try_another() if len(side.rates) == _BLOCKS and self._pause <= 0 else None
        return self._judge(self._trial) if len(side.rates) == _BLOCKS else None

    def _try_another(self) -> str | None:
        limit = self._neighbour()
        if limit == self.current:
            self._pause = self._next_pause
            return None
        self._trial, self.current = _Side(limit), limit
        return "another limit is tried for throughput"

    def _neighbour(self) -> int:
        """Return the limit to try next: one rung down or up, the one not tried last that lies within the bounds."""
        low, high, current = self.limits.min_batch_size, self.limits.max_batch_size, self.current
        below = max(low, min(current - 1, round(current * _LADDER)))
        above = min(high, max(current + 1, round(current / _LADDER)))
        if below >= current:
            self._down = False
        elif above <= current:
            self._down = True
        return below if self._down and below < current else above

    def _judge(self, trial: _Side) -> str:
        present, self._trial = self._present, None
        gain = statistics.fmean(trial.rates) - statistics.fmean(present.rates)
        noise = _T_95 * math.sqrt(
            (statistics.variance(trial.rates) + statistics.variance(present.rates)) / len(trial.rates)
        )
        if gain > max(noise, _LEAST_GAIN * statistics.fmean(present.rates)):
            self._present, self.current = trial, trial.limit
            self._pause, self._next_pause = 0, _FIRST_PAUSE
            return f"throughput rose by {gain:.0f} tokens/s: the limit is kept"
        self.current, self._down = present.limit, not self._down
        self._present = _Side(present.limit)
        self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, _LONGEST_PAUSE)
        return f"throughput changed by {gain:+.0f} tokens/s, within its noise of {noise:.0f} or for the worse: reverted"


def running_limit(limits: BatchLimits) -> RunningLimit:
    """Return the kind of running limit that is configured."""
    if not limits.adaptive or limits.min_batch_size == limits.max_batch_size:
        return FixedLimit(limits)
    return ThroughputLimit(limits) if limits.latency_target_s is None else LatencyLimit(limits)


class LimitKeeper:
    """The running limit of one batcher, of any kind, and the events of its moves.

    gaps_s: times between two tokens of one sequence since the last step was observed; the batcher fills it.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self.gaps_s: list[float] = []
        self._limit = running_limit(limits)

    @property
    def current(self) -> int:
        """Most sequences that may run at this moment."""
        return self._limit.current

    def set_limits(self, limits: BatchLimits, now: float) -> list[Event]:
        """Keep the limit within other bounds, with another kind of limit if they configure one."""
        before, wanted = self._limit.current, running_limit(limits)
        if type(wanted) is type(self._limit):
            self._limit.set_limits(limits)
        else:
            self._limit = wanted
        return self._moved(before, "the limits were changed", now)

    def observe(self, step: StepSeen) -> list[Event]:
        """Take in a step, and the gaps between tokens that ended with it."""
        gaps_s, self.gaps_s = self.gaps_s, []
        if isinstance(self._limit, FixedLimit):
            return []
        before = self._limit.current
        reason = self._limit.observe(step, gaps_s)
        return [] if reason is None else self._moved(before, reason, step.ended)

    def _moved(self, before: int, reason: str, now: float) -> list[Event]:
        after = self._limit.current
        return [] if after == before else [LimitMoved(now, before, after, reason)]
