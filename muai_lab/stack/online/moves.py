"""The order in which the online tuner tries other values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from muai_lab.stack.online.judge import CLEAR_DEVIATIONS
from muai_lab.stack.online.knobs import Knob, KnobBounds, Values
from muai_lab.stack.online.shift import WorkloadFeatures, shifts
from muai_lab.stack.online.window import Block, Targets

_REMEMBERED = 16  # workloads
_SHARING = 0.01  # of the prompt tokens that a small cache must serve for a larger one to be tried first
_MOST = 0.5  # attainment below which most requests miss their targets
_SLOW_SHARE = 0.1  # of the requests that must miss their pace for a smaller batch to be worth a trial
_DOUBLING = 1.8  # ratio from which on a step of the batch size was one of two rungs


class MoveOrder:
    """The values that may help, most promising first, from what the requests miss and from earlier trials.

    home: the configured values. adaptive: the batch size is only a bound of the scheduler's own running limit. tried:
    gain in standard errors of the values that were tried under the present workload.
    """

    def __init__(self, home: Values, bounds: KnobBounds, targets: Targets, *, adaptive: bool) -> None:
        self.tried: dict[Values, float] = {}
        self._home = home
        self._bounds = bounds
        self._targets = targets
        self._adaptive = adaptive
        self._onward: tuple[Knob, int] | None = None  # the last move that helped
        self._good: list[tuple[WorkloadFeatures, Values]] = []

    def start_over(self) -> None:
        """Drop the results of trials: they do not count under another workload."""
        self.tried.clear()
        self._onward = None

    def helped(self, before: Values, after: Values, deviations: float, present: WorkloadFeatures) -> None:
        """Record a trial that was kept. deviations: its gain in standard errors."""
        self.tried[before] = -deviations
        self._onward = _direction(before, after)
        self._good = [*self._good[1 - _REMEMBERED :], (present, after)]

    def failed(self, values: Values, deviations: float | None) -> None:
        """Record a trial that was reverted. deviations: its gain in standard errors; None for a void trial."""
        if deviations is not None:
            self.tried[values] = deviations
        self._onward = None

    def candidates(self, values: Values, whole: Block, present: WorkloadFeatures) -> list[tuple[Values, str]]:
        """Return the values that are worth a trial, most promising first, each with the reason.

        Args:
            values: The values in force.
            whole: The recent blocks, added up.
            present: The features of the present workload.
        """
        found = self._found(values, whole, present)
        return [(other, reason) for other, reason in found if self._worth_trying(values, other)]

    def points_home(self, values: Values, whole: Block) -> bool:
        """True if the configured values are worth a trial: not in force, and not in the wrong direction."""
        if self._home == values:
            return False
        if self._home.moved(values) != (Knob.BATCH,):
            return True
        wants_more = whole.late + whole.rejected > whole.ended - whole.ready
        if self._home.max_batch_size > values.max_batch_size:
            return not self._targets.set or wants_more
        return not wants_more

    def _found(self, values: Values, whole: Block, present: WorkloadFeatures) -> Iterator[tuple[Values, str]]:
        slow = whole.ended - whole.ready  # requests that missed their pace, late or not
        too_slow = self._targets.set and slow * whole.settled > (whole.late + whole.rejected) * whole.ended
        if self._onward is not None:
            knob, rungs = self._onward
            # Once a smaller batch has restored the pace, requests miss something else.
            if knob is not Knob.BATCH or (rungs < 0) == too_slow or not self._targets.set:
                yield from self._moves(values, knob, (rungs,), whole, "onward, since the last step helped")
        if self.points_home(values, whole):
            yield self._home, "what is configured may do better under this workload"
        if whole.hit_rate > _SHARING:
            yield from self._moves(values, Knob.CACHE, (1,), whole, "prompts share prefixes: more of them kept")
        for known, good in reversed(self._good):
            if not shifts(known, present, ignore=frozenset({"prefix hits"})):
                yield good, "this was good under a workload like this one"
        if too_slow:
            # If most are too slow the deeper cut comes first: half as many may still be too many, and show nothing.
            cuts = (-4, -2, -1) if whole.attainment < _MOST else (-2, -1, -4)
            yield from self._moves(values, Knob.BATCH, cuts, whole, "tokens come too slowly: fewer at a time")
            yield from self._moves(
                values, Knob.CACHE, (1,), whole, "tokens come too slowly: less to prefill beside them"
            )
            yield from self._moves(values, Knob.BATCH, (1,), whole, "fewer at a time did not help: more")
        else:
            yield from self._moves(values, Knob.BATCH, (2, 1), whole, "requests wait for a slot: more at a time")
            yield from self._moves(values, Knob.TIMEOUT, (-1,), whole, "requests wait: shorter holds")
            yield from self._moves(values, Knob.CACHE, (1,), whole, "requests wait: less to prefill")
            if not self._targets.set or slow > _SLOW_SHARE * whole.ended:
                yield from self._moves(values, Knob.BATCH, (-2, -1), whole, "more at a time did not help: fewer")
        yield from self._moves(values, Knob.TIMEOUT, (1,), whole, "longer holds, for fuller batches")
        if whole.looked_up and not whole.cached:
            yield from self._moves(values, Knob.CACHE, (-1,), whole, "the cache serves nothing: without it")

    def _worth_trying(self, values: Values, other: Values) -> bool:
        """False for the values in force, and beyond a batch size that was clearly worse: goodput has one peak."""
        here, there = values.max_batch_size, other.max_batch_size
        if other == values:
            return False
        if other.moved(values) != (Knob.BATCH,):
            return True
        return not any(
            deviations < -CLEAR_DEVIATIONS
            and tried.moved(values) == (Knob.BATCH,)
            and min(here, there) < tried.max_batch_size < max(here, there)
            for tried, deviations in self.tried.items()
        )

    def _moves(
        self, values: Values, knob: Knob, rungs: Sequence[int], whole: Block, reason: str
    ) -> Iterator[tuple[Values, str]]:
        """Yield the moves of one knob that can have an effect."""
        for count in rungs:
            if knob is Knob.BATCH and not self._batch_matters(values, whole, up=count > 0):
                continue
            moved = self._bounds.step(values, knob, count)
            if moved is not None:
                yield moved, reason

    def _batch_matters(self, values: Values, whole: Block, *, up: bool) -> bool:
        """True if a move of the batch size can have an effect.

        Raising it has none unless it holds requests back; nor has lowering it if the adaptive limit is lower.
        """
        at_limit = whole.running_when_short >= 0.85 * values.max_batch_size
        return at_limit and whole.short_s > 0.1 * whole.busy_s if up or self._adaptive else True


def _direction(before: Values, after: Values) -> tuple[Knob, int] | None:
    """Return the knob that moved, and by how many rungs; None if several moved."""
    moved = before.moved(after)
    if len(moved) != 1:
        return None
    (knob,) = moved
    ratio = max(after.of(knob), 1) / max(before.of(knob), 1)
    rungs = 2 if knob is Knob.BATCH and (ratio >= _DOUBLING or ratio <= 1 / _DOUBLING) else 1
    return knob, rungs if ratio > 1 else -rungs
