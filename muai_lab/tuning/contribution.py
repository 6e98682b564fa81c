"""What each changed key is worth by itself: put back to its present value, one after the other, on paired blocks.

A key without which the winner is as good (within the noise) is put back for good before the next is looked at: fewer
changes are fewer surprises. What is left has earned its change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from muai_lab.analysis.comparison import mean_change
from muai_lab.analysis.statistics import Estimate
from muai_lab.errors import SettingsError
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.arena import Arena, ConfigurationFailed
from muai_lab.tuning.block import BlockResult
from muai_lab.tuning.measure import Switch, Unmeasurable, measure
from muai_lab.tuning.objective import Bounds, Objective, total_violation
from muai_lab.tuning.search_space import Point, SearchSpace, Value, value_at, with_values

_UNKNOWN = Estimate(None)
_REPEATS = 2
# Fewer blocks than this decide nothing after the first repeat.
_ENOUGH_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a change of one key brought.

    gain: of the winner over the winner with this key at its present value, relative, with the ends of its 95 %
    interval; None where it was not measured. kept: whether the change stays. reason: why it does or does not, in words.
    """

    path: str
    before: Value
    after: Value
    gain: float | None
    low: float | None
    high: float | None
    kept: bool
    reason: str


def changes(space: SearchSpace, present: OptimizationSettings, point: Point) -> dict[str, Value]:
    """The values of a point that differ from the present configuration."""
    return {path: value for path, value in point.items() if value_at(present, path) != value}


def earn(
    arena: Arena,
    space: SearchSpace,
    present: OptimizationSettings,
    winner: Point,
    objective: Objective,
    bounds: Bounds,
    switch: Switch,
    *,
    blocks: int,
    noise: float,
    order: Sequence[str] = (),
    after_key: Callable[[Contribution], None] = lambda contribution: None,
) -> tuple[dict[str, Value], list[Contribution]]:
    """The changes that earned their place, and what each was worth.

    order: paths in the order in which they are tried, least promising first; the others follow as they come.
    Raises ConfigurationFailed when the winner itself does not serve, Unmeasurable, Interrupted.
    """
    kept = changes(space, present, winner)
    found: list[Contribution] = []
    ranked = sorted(kept, key=lambda path: order.index(path) if path in order else len(order))
    for path in ranked:
        if len(kept) == 1 and path in kept and not found:
            contribution = Contribution(
                path,
                value_at(present, path),
                kept[path],
                None,
                None,
                None,
                True,
                "the only change: see the confirmation",
            )
        else:
            contribution = _try_without(arena, space, present, kept, path, objective, bounds, switch, blocks, noise)
        if not contribution.kept:
            del kept[path]
        found.append(contribution)
        after_key(contribution)
    return kept, found


def _try_without(
    arena: Arena,
    space: SearchSpace,
    present: OptimizationSettings,
    kept: Point,
    path: str,
    objective: Objective,
    bounds: Bounds,
    switch: Switch,
    blocks: int,
    noise: float,
) -> Contribution:
    before, after = value_at(present, path), kept[path]

    def outcome(kept: bool, reason: str, gain: Estimate = _UNKNOWN) -> Contribution:
        return Contribution(path, before, after, gain.value, gain.low, gain.high, kept, reason)

    with_it = with_values(present, kept)
    parameter = next(one for one in space if one.path == path)
    if not parameter.applies(space.known(with_it)):
        return outcome(False, "without effect: its condition does not hold")
    try:
        without_it = with_values(present, {name: value for name, value in kept.items() if name != path})
    except SettingsError:
        return outcome(True, "goes with another change: alone its present value would contradict it")
    try:
        gain, broken = _compare(arena, with_it, without_it, objective, bounds, switch, blocks, noise)
    except ConfigurationFailed as error:
        if not _serves(arena, with_it):
            raise
        return outcome(True, f"without it the configuration does not serve: {str(error).splitlines()[0]}")
    except Unmeasurable:
        return outcome(True, "could not be told apart: the load generator was the bottleneck")
    if broken:
        return outcome(True, "without it the bounds are not kept", gain)
    if (gain.value or 0.0) > noise and (gain.low or 0.0) > 0.0:
        return outcome(True, "earns its place", gain)
    return outcome(False, "no effect beyond the noise: put back", gain)


def _compare(
    arena: Arena,
    with_it: OptimizationSettings,
    without_it: OptimizationSettings,
    objective: Objective,
    bounds: Bounds,
    switch: Switch,
    blocks: int,
    noise: float,
) -> tuple[Estimate, bool]:
    """The gain of having the change, and whether only the change keeps the bounds.

    The second repeat, in the other order, is left out where the first leaves no doubt on which side of the noise it is.
    """
    runs: dict[bool, list[list[BlockResult]]] = {True: [], False: []}
    gain = _UNKNOWN
    for repeat in range(_REPEATS):
        for has_it in (True, False) if repeat % 2 == 0 else (False, True):
            arm = with_it if has_it else without_it
            runs[has_it].append(measure(arena, arm, range(blocks), switch).blocks)
        new, old = ([value for run in runs[has_it] for value in objective.per_block(run)] for has_it in (True, False))
        gain = gain_over_blocks(objective, new, old)
        if len(new) >= _ENOUGH_BLOCKS and _beyond_doubt(gain, noise):
            break
    seen = {has_it: [block for run in found for block in run] for has_it, found in runs.items()}
    missed = {has_it: total_violation(bounds.violations(found, None)) for has_it, found in seen.items()}
    return gain, missed[False] > 0.0 >= missed[True]


def gain_over_blocks(objective: Objective, new: Sequence[float], old: Sequence[float]) -> Estimate:
    """The relative gain over pairs of blocks with its interval; on the log scale, so that no rate loses over 100 %."""
    mean, _ = mean_change(np.array(objective.log_gains(new, old)), 0.0)
    return Estimate(*(objective.gain_of_log(end or 0.0) for end in (mean.value, mean.low, mean.high)))


def _beyond_doubt(gain: Estimate, noise: float) -> bool:
    """Whether the whole interval lies far above the noise, or below 0."""
    return gain.low is not None and gain.high is not None and (gain.low > 2.0 * noise or gain.high < 0.0)


def _serves(arena: Arena, optimization: OptimizationSettings) -> bool:
    try:
        arena.apply(optimization)
    except ConfigurationFailed:
        return False
    return True
