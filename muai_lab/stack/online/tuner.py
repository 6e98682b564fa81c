"""The online tuner: it tries configurations one after the other, and keeps those that help.

Pure decisions on explicit time: `tick(now)` evaluates the window of events and returns the decisions; the caller
applies `values`. One change is tried at a time, for one interval, against the interval before it. It is kept only if
the objective rose beyond the noise of both, and cut short as soon as it clearly fell. The first move follows from what
the requests miss. If it does not help, the other moves are tried. If none helps the tuner rests, each time for longer.
Another workload starts the search over. Nothing is tried while there is nothing to gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from muai_lab.stack.events import Tuned, TunerNoted
from muai_lab.stack.online.judge import CLEAR_DEVIATIONS, TrialComparison, compare
from muai_lab.stack.online.knobs import Knob, KnobBounds, Values
from muai_lab.stack.online.moves import MoveOrder
from muai_lab.stack.online.shift import shifts, workload
from muai_lab.stack.online.window import Block, Targets, TunerWindow, total

BLOCKS_PER_INTERVAL = 10
"""A tick comes with each block, so that a trial that hurts is cut short within a few tenths of an interval."""

_FEW = 20  # settled requests; below this number nothing is decided
_FEW_TO_CUT = 10  # settled requests; below this number no trial is cut short
_CUT_BLOCKS = 2
_ENOUGH = 0.98  # attainment from which on a trial risks more than it can gain
_LATEST_BLOCKS = 3
_KEEP_DEVIATIONS = 1.7  # about one false keep in twenty
_CUT_SHARE = 0.05
_COLLAPSE_SHARE = 0.1
_LOST = 0.05  # attainment below which there is nothing to lose
_FIRST_REST, _LONGEST_REST = 4, 64  # intervals
_LONGEST_RECOVERY = 3  # intervals


@dataclass(slots=True)
class _Trial:
    """One change on trial. measured_from: when the sequences that ran before it have mostly ended."""

    before: Values
    baseline: Sequence[Block]
    began: float
    measured_from: float
    until: float


class OnlineTuner:
    """Tunes one stack.

    home: the configured values. The tuner reverts to them when the values it found stop helping. values: those in
    force. adaptive: True if the scheduler moves its running limit itself; the batch size is then only a bound of that
    limit, and is moved only if that bound holds requests back. start: values to begin with, if not home.
    """

    def __init__(
        self,
        window: TunerWindow,
        *,
        home: Values,
        bounds: KnobBounds,
        targets: Targets,
        interval_s: float,
        window_s: float,
        began: float,
        adaptive: bool = False,
        start: Values | None = None,
    ) -> None:
        self.home = home
        self.values = home if start is None else bounds.clip(start, home)
        self._window = window
        self._tunes_cache = bounds.allows(Knob.CACHE)
        self._moves = MoveOrder(home, bounds, targets, adaptive=adaptive)
        self._targets = targets
        self._interval_s = interval_s
        self._window_s = window_s
        self._began = began
        self._epoch_began = began  # the workload has been the same since then
        self._since = began  # the present values have been in force since then
        self._next = began + interval_s
        self._trial: _Trial | None = None
        self._resting = False
        self._rest_until = began
        self._rest = _FIRST_REST
        self._regain: tuple[Sequence[Block], int] | None = None  # level before a trial, intervals waited

    @property
    def good(self) -> Values:
        """The values in force; during a trial, those to which a failed trial reverts."""
        return self.values if self._trial is None else self._trial.before

    def tick(self, now: float) -> list[Tuned | TunerNoted]:
        """Decide. Call it once per block (`BLOCKS_PER_INTERVAL` times per interval), and apply `values` afterwards."""
        if self._trial is not None:
            return self._watch(self._trial, now)
        if now + 1e-9 < self._next:
            return self._guard(now)
        self._next = self._boundary(now)
        return self._consider(now)

    # Without a trial

    def _consider(self, now: float) -> list[Tuned | TunerNoted]:
        """Start a trial at the end of an interval if there is something to gain."""
        notes: list[Tuned | TunerNoted] = list(self._note_shift(now))
        recent = self._recent(now)
        whole = total(recent)
        if whole.settled < _FEW or self._satisfied(whole) or self._recovering(recent) or now < self._rest_until:
            return notes
        candidates = self._moves.candidates(self.values, whole, workload(recent))
        for values, reason in candidates:
            if values not in self._moves.tried:
                return notes + self._try(values, recent, reason, now)
        if candidates and self._resting:  # and the rest is over: try again the one that came nearest
            self._resting = False
            values, reason = max(candidates, key=lambda one: self._moves.tried[one[0]])
            return notes + self._try(values, recent, f"once more: {reason}", now)
        if candidates:
            self._resting = True
            self._rest_until = now + self._rest * self._interval_s
            notes.append(TunerNoted(now, "rest", f"nothing helped; rests for {self._rest} intervals"))
            self._rest = min(2 * self._rest, _LONGEST_REST)
        return notes

    def _guard(self, now: float) -> list[Tuned | TunerNoted]:
        """Within an interval, try the configured values at once if the values found have stopped helping."""
        if self.values == self.home or self.home in self._moves.tried:
            return []
        blocks = self._window.blocks(now, max(self._since, self._epoch_began))
        before, after = blocks[:-_CUT_BLOCKS][-BLOCKS_PER_INTERVAL:], blocks[-_CUT_BLOCKS:]
        whole = total(after)
        if len(before) < _CUT_BLOCKS or total(before).settled < _FEW or whole.settled < _FEW_TO_CUT:
            return []
        comparison = compare(before, after, self._targets)
        fallen = comparison.worse(CLEAR_DEVIATIONS, least=_COLLAPSE_SHARE) and not self._satisfied(whole)
        if not fallen or not self._moves.points_home(self.values, whole):
            return []
        self._next = self._boundary(now)
        return self._try(self.home, after, f"what was good no longer is, what is configured may be: {comparison}", now)

    def _recent(self, now: float) -> list[Block]:
        """Return the blocks of the last interval, or of more intervals if it had too few requests."""
        blocks = self._window.blocks(now, max(self._since, self._epoch_began, now - self._window_s))
        count = BLOCKS_PER_INTERVAL
        while count < len(blocks) and total(blocks[-count:]).settled < _FEW:
            count += BLOCKS_PER_INTERVAL
        return blocks[-count:]

    def _satisfied(self, whole: Block) -> bool:
        """True if there is nothing to gain: nearly all are good, or, without targets, all arrivals are served."""
        return whole.attainment >= _ENOUGH if self._targets.set else not whole.saturated

    def _recovering(self, recent: Sequence[Block]) -> bool:
        """True while the backlog of a trial still drains; nothing can be compared then."""
        if self._regain is None:
            return False
        lost, waited = self._regain
        if waited >= _LONGEST_RECOVERY or not compare(lost, recent, self._targets).worse(_KEEP_DEVIATIONS):
            self._regain = None
            return False
        self._regain = lost, waited + 1
        return True

    def _note_shift(self, now: float) -> list[TunerNoted]:
        blocks = self._window.blocks(now, self._epoch_began)
        earlier, latest = blocks[:-BLOCKS_PER_INTERVAL], blocks[-BLOCKS_PER_INTERVAL:]
        if len(earlier) < BLOCKS_PER_INTERVAL // 2:
            return []
        # The share that the cache serves also follows from its size, while there are blocks from before a change.
        moved = self._since > self._epoch_began
        ignore = frozenset({"prefix hits"} if moved and self._tunes_cache else ())
        found = shifts(workload(earlier), workload(latest), ignore=ignore)
        return self._start_anew(now - self._interval_s, now, "; ".join(found)) if found else []

    def _start_anew(self, since: float, now: float, reason: str) -> list[TunerNoted]:
        """Start the search over: results under another workload do not count."""
        self._epoch_began = since
        self._moves.start_over()
        self._regain = None
        self._resting, self._rest_until, self._rest = False, now, _FIRST_REST
        return [TunerNoted(now, "shift", reason)]

    # With a trial

    def _try(self, values: Values, baseline: Sequence[Block], reason: str, now: float) -> list[Tuned | TunerNoted]:
        block_s = self._block_s
        settle_s = min(max(total(baseline).mean_service_s, block_s), self._interval_s / 3)
        before, self.values = self.values, values
        self._trial = _Trial(before, baseline, now, now + settle_s, self._boundary(now + self._interval_s / 2))
        return self._tuned(before, values, "tried", reason, now)

    def _watch(self, trial: _Trial, now: float) -> list[Tuned | TunerNoted]:
        blocks = self._window.blocks(now, trial.measured_from)
        settled = total(blocks).settled
        over = now + 1e-9 >= trial.until
        if over and settled < _FEW and now < trial.began + self._window_s:
            return []  # continues until there are enough requests to judge it
        if len(blocks) < _CUT_BLOCKS or settled < (_FEW if over else _FEW_TO_CUT):
            return self._revert(trial, "too few requests came to judge it", now) if over else []
        comparison = compare(trial.baseline, blocks, self._targets)
        if not over:
            # If nearly nothing was good before, a trial has nothing to lose, and may begin with a backlog.
            lost = total(trial.baseline).attainment > _LOST
            if lost and comparison.worse(CLEAR_DEVIATIONS, least=_CUT_SHARE):
                return self._revert(trial, f"cut short: {comparison}", now, comparison)
            return []
        return self._judge(trial, blocks, comparison, now)

    def _judge(
        self, trial: _Trial, blocks: Sequence[Block], comparison: TrialComparison, now: float
    ) -> list[Tuned | TunerNoted]:
        if not comparison.better(_KEEP_DEVIATIONS) and self._promising(trial, blocks, comparison, now):
            return []
        first, second = workload(trial.baseline), workload(blocks)
        found = shifts(first, second, ignore=frozenset({"prefix hits"}))
        better = comparison.better(_KEEP_DEVIATIONS)
        if found and better and second.demand < first.demand:
            notes = self._revert(trial, f"void, since less was asked for: {'; '.join(found)}", now, void=True)
        elif better:
            notes = self._keep(trial, blocks, comparison, now)
        elif found:
            notes = self._revert(trial, f"void: {'; '.join(found)}", now, void=True)
        else:
            notes = self._revert(trial, str(comparison), now, comparison)
        if found:
            notes += self._start_anew(trial.measured_from, now, "; ".join(found))
        return notes

    def _promising(self, trial: _Trial, blocks: Sequence[Block], comparison: TrialComparison, now: float) -> bool:
        """True if a trial continues for another interval.

        It continues if nearly every request is good by now, so that waiting costs nothing, until the difference is sure
        or the observation window is full.
        """
        latest = total(blocks[-_LATEST_BLOCKS:])
        if not self._targets.set or now + self._interval_s > trial.began + self._window_s:
            return False
        if comparison.after <= comparison.before or latest.settled < _FEW_TO_CUT or not self._satisfied(latest):
            return False
        trial.until = self._boundary(now + self._interval_s / 2)
        return True

    def _keep(
        self, trial: _Trial, blocks: Sequence[Block], comparison: TrialComparison, now: float
    ) -> list[Tuned | TunerNoted]:
        self._trial = None
        self._since = trial.measured_from
        self._moves.helped(trial.before, self.values, comparison.deviations, workload(blocks))
        self._resting, self._rest = False, _FIRST_REST
        self._regain = None
        notes = self._tuned(trial.before, self.values, "kept", str(comparison), now)
        self._next = self._boundary(now)
        # The blocks of this trial are the baseline of the next one, which can begin at once.
        return notes + self._consider(now)

    def _revert(
        self, trial: _Trial, reason: str, now: float, comparison: TrialComparison | None = None, *, void: bool = False
    ) -> list[Tuned | TunerNoted]:
        tried, self.values = self.values, trial.before
        hurt = comparison is not None and comparison.worse(_KEEP_DEVIATIONS)
        self._trial = None
        deviations = -math.inf if comparison is None else comparison.deviations
        self._moves.failed(tried, None if void else deviations)
        self._since = now + (trial.measured_from - trial.began)
        # After a trial that hurt, a whole interval passes without one, so there are never two such in a row.
        self._next = self._boundary(now + (self._interval_s if hurt else 0.0))
        self._regain = (trial.baseline, 0)
        return self._tuned(tried, self.values, "reverted", reason, now)

    def _tuned(self, before: Values, after: Values, outcome: str, reason: str, now: float) -> list[Tuned | TunerNoted]:
        return [
            Tuned(now, knob.value, before.of(knob), after.of(knob), outcome, reason) for knob in before.moved(after)
        ]

    def _boundary(self, now: float) -> float:
        """Return the first end of an interval after `now`. It lies on a grid, because ticks come a little late."""
        passed = math.floor((now - self._began) / self._interval_s + 1e-6)
        return self._began + (passed + 1) * self._interval_s

    @property
    def _block_s(self) -> float:
        return self._interval_s / BLOCKS_PER_INTERVAL
