"""The worth of each changed key, and the smallest set of changes that loses nothing.

Every change is taken back by itself while all others stay, over runs in rounds (see `rounds`). Changes whose worth is
shown stay. The others are taken back together, and the reduced set is compared with the whole winner: keys that are
each worth too little to show, and keys of which any one is enough, may be worth much together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from muai_lab.analysis.statistics import Estimate
from muai_lab.errors import SettingsError
from muai_lab.settings.changes import with_values
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.arena import ConfigurationFailed
from muai_lab.tuning.bench import Bench
from muai_lab.tuning.block_result import BlockResult
from muai_lab.tuning.objective import total_violation
from muai_lab.tuning.rounds import (
    ArmRuns,
    as_gain,
    difference,
    in_rounds,
    log_levels,
    noise_within,
)
from muai_lab.tuning.search_space import Point, Value, value_at

ROUNDS = 3
# Two configurations alone show little of their noise.
_ROUNDS_OF_TWO = 4
# If all changes are worth nothing, the probability that they are put into the file again.
_LOSS_TAIL = 0.01
# Changes do the same if alone they explain less than this part of what they are worth together.
_PART = 0.5
_WHOLE = "the whole winner"
_REDUCED = "the reduced set"


@dataclass(frozen=True, slots=True)
class Contribution:
    """The worth of a change of one key.

    gain: Of the winner over the winner with this key at its present value, relative. low, high: Ends of its 95 %
    interval. All are None if they were not measured. kept: True if the change stays. reason: For that, in words.
    """

    path: str
    before: Value
    after: Value
    gain: float | None
    low: float | None
    high: float | None
    kept: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Earned:
    """The outcome. kept: The changes that stay. reduction: Gain of the kept set over the whole winner; None if the kept
    set is the whole winner."""

    kept: dict[str, Value]
    contributions: tuple[Contribution, ...]
    reduction: Estimate | None = None


def changes(present: OptimizationSettings, point: Point) -> dict[str, Value]:
    """Return the values of a point that differ from the present configuration."""
    return {path: value for path, value in point.items() if value_at(present, path) != value}


def earn(
    bench: Bench,
    winner: Point,
    *,
    order: Sequence[str] = (),
    after_key: Callable[[Contribution], None] = lambda contribution: None,
) -> Earned:
    """Return the changes that earned their place, and the worth of each.

    Args:
        bench: Measures the runs. A change without which a constraint does not hold stays.
        winner: The best point of the search.
        order: Paths in the order in which they are reported, least promising first; the others follow.
        after_key: Called with each contribution.

    Raises:
        ConfigurationFailed: The winner itself does not serve.
        Unmeasurable: The load generator is the bottleneck under the winner.
        Interrupted: A stop was requested.
    """
    found = _Earning(bench).outcome(changes(bench.problem.present, winner))
    ranked = sorted(found.contributions, key=lambda one: order.index(one.path) if one.path in order else len(order))
    for contribution in ranked:
        after_key(contribution)
    return replace(found, contributions=tuple(ranked))


class _Earning:
    """The measurement of a winner's changes. It pools the noise of its runs as it goes."""

    def __init__(self, bench: Bench) -> None:
        problem = bench.problem
        self._bench = bench
        self._space = problem.space
        self._present = problem.present
        self._objective = problem.objective
        self._bounds = problem.constraints
        self._noise = bench.noise
        self._found: dict[str, Contribution] = {}
        self._alone: dict[str, float] = {}  # log gains of changes that were not shown to be worth anything alone

    def outcome(self, winner: dict[str, Value]) -> Earned:
        whole = dict(winner)
        self._take_back_what_has_no_effect(whole)
        if len(whole) == 1:
            self._tell(next(iter(whole)), whole, True, "the only change: see the confirmation")
            return self._earned(whole)
        if not whole:
            return self._earned(whole)
        idle = self._each_by_itself(whole)
        if not idle:
            return self._earned(whole)
        return self._take_back(whole, idle)

    def _earned(self, kept: dict[str, Value], reduction: Estimate | None = None) -> Earned:
        return Earned(kept, tuple(self._found.values()), reduction)

    def _tell(self, path: str, values: Point, kept: bool, reason: str, gain: Estimate = Estimate(None)) -> None:  # noqa: B008
        before = value_at(self._present, path)
        self._found[path] = Contribution(path, before, values[path], gain.value, gain.low, gain.high, kept, reason)

    def _retell(self, path: str, reason: str, *, kept: bool) -> None:
        self._found[path] = replace(self._found[path], kept=kept, reason=reason)

    def _take_back_what_has_no_effect(self, kept: dict[str, Value]) -> None:
        """Drop the keys whose condition does not hold."""
        known = self._space.known(with_values(self._present, kept))
        for parameter in self._space:
            if parameter.path in kept and not parameter.applies(known):
                self._tell(parameter.path, kept, False, "without effect: its condition does not hold")
                del kept[parameter.path]

    def _each_by_itself(self, whole: dict[str, Value]) -> list[str]:
        """Take every change back by itself; return those whose worth was not shown, least worth first."""
        arms = {_WHOLE: with_values(self._present, whole)}
        for path in whole:
            try:
                arms[path] = with_values(self._present, _without(whole, path))
            except SettingsError:
                reason = "goes with another change: alone its present value would contradict it"
                self._tell(path, whole, True, reason)
        rounds, gains = self._compare(arms)
        for path, error in rounds.failed.items():
            self._tell(path, whole, True, _why_it_stays(error, "it"))
        for path, logarithm in gains.items():
            gain = as_gain(self._objective, logarithm)
            if self._only_first_keeps_bounds(rounds, _WHOLE, path):
                self._tell(path, whole, True, "without it the bounds are not kept", gain)
            elif (logarithm.low or 0.0) > 0.0:
                self._tell(path, whole, True, "earns its place", gain)
            else:
                self._tell(path, whole, False, "no effect beyond the noise: put back", gain)
                self._alone[path] = logarithm.value or 0.0
        return sorted(self._alone, key=lambda path: self._alone[path])

    def _take_back(self, whole: dict[str, Value], idle: Sequence[str]) -> Earned:
        """Take all idle changes back, unless the whole winner is better than the reduced set."""
        kept = _without(whole, *idle)
        try:
            self._take_back_what_has_no_effect(kept)
            arms = {_WHOLE: with_values(self._present, whole), _REDUCED: with_values(self._present, kept)}
        except SettingsError:
            return self._restored(whole, idle, "put back together with others it would contradict what stays")
        rounds, gains = self._compare(arms)
        if _REDUCED in rounds.failed:
            return self._restored(whole, idle, _why_it_stays(rounds.failed[_REDUCED], "all of these changes"))
        if self._only_first_keeps_bounds(rounds, _WHOLE, _REDUCED):
            return self._restored(whole, idle, "without all of these changes the bounds are not kept")
        loss, certain = gains[_REDUCED], self._gains(rounds, _LOSS_TAIL)[_REDUCED]
        if (certain.low or 0.0) <= 0.0:
            return self._earned(kept, as_gain(self._objective, _negative(loss)))
        # Alone each is worth too little to explain the worth of all together: one of several may be enough.
        if sum(self._alone[path] for path in idle) < _PART * (loss.value or 0.0):
            enough = self._one_of_several(whole, idle, _PART * (loss.value or 0.0))
            if enough is not None:
                return enough
        told = f"{as_gain(self._objective, loss).value or 0.0:+.1%}"
        reason = f"too little to show by itself, but {told} together with the others of which this is true"
        return self._restored(whole, idle, reason)

    def _restored(self, whole: dict[str, Value], idle: Sequence[str], reason: str) -> Earned:
        for path in (*idle, *(path for path in whole if not self._found[path].kept)):
            self._retell(path, reason, kept=True)
        return self._earned(whole)

    def _one_of_several(self, whole: dict[str, Value], idle: Sequence[str], loss_limit: float) -> Earned | None:
        """Keep one of several changes that do the same; None if no single one of them is enough.

        loss_limit: The largest loss of the reduced set, as a logarithm.
        """
        arms = {_WHOLE: with_values(self._present, whole)}
        for path in idle:
            try:
                arms[path] = with_values(self._present, _without(whole, *(one for one in idle if one != path)))
            except SettingsError:
                continue
        rounds, losses = self._compare(arms)
        enough = [
            path
            for path, loss in losses.items()
            if (loss.low or 0.0) <= 0.0
            and (loss.value or 0.0) < loss_limit
            and not self._only_first_keeps_bounds(rounds, _WHOLE, path)
        ]
        if not enough:
            return None
        path = min(enough, key=lambda one: losses[one].value or 0.0)
        others = [one for one in idle if one != path]
        same = [one for one in others if one in enough]
        names = " or ".join(same) if same else "others that were put back"
        self._retell(path, f"does the same as {names}: one of them is enough, and this one stays", kept=True)
        for other in same:
            self._retell(other, f"does the same as {path}, which stays: put back", kept=False)
        kept = _without(whole, *others)
        return self._earned(kept, as_gain(self._objective, _negative(losses[path])))

    def _compare(self, arms: Mapping[str, OptimizationSettings]) -> tuple[ArmRuns[str], dict[str, Estimate]]:
        """Measure the arms; return the log gain of the whole winner over each other one."""
        rounds = in_rounds(self._run, arms, ROUNDS if len(arms) > 2 else _ROUNDS_OF_TWO, _WHOLE)
        self._noise = self._noise.with_(noise_within(log_levels(rounds, self._objective, _WHOLE)))
        return rounds, self._gains(rounds)

    def _run(self, optimization: OptimizationSettings) -> Sequence[BlockResult]:
        return self._bench.run(optimization).blocks

    def _gains(self, rounds: ArmRuns[str], tail: float = 0.025) -> dict[str, Estimate]:
        levels = log_levels(rounds, self._objective, _WHOLE)
        whole = levels.pop(_WHOLE)
        return {arm: difference(whole, level, self._noise, tail) for arm, level in levels.items()}

    def _only_first_keeps_bounds(self, rounds: ArmRuns[str], first: str, second: str) -> bool:
        missed = [total_violation(self._bounds.violations(rounds.blocks(arm), None)) for arm in (first, second)]
        return missed[1] > 0.0 >= missed[0]


def _why_it_stays(error: Exception, what: str) -> str:
    """Return the reason to keep a change if the configuration without it could not be measured."""
    if isinstance(error, ConfigurationFailed):
        return f"without {what} the configuration does not serve: {str(error).splitlines()[0]}"
    return f"could not be told apart without {what}: the load generator was the bottleneck"


def _without(values: Mapping[str, Value], *paths: str) -> dict[str, Value]:
    return {path: value for path, value in values.items() if path not in paths}


def _negative(estimate: Estimate) -> Estimate:
    low, high = estimate.low, estimate.high
    return Estimate(
        None if estimate.value is None else -estimate.value,
        None if high is None else -high,
        None if low is None else -low,
    )
