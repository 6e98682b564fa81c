"""The settings that the tuner may move, with their bounds and steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muai_lab.settings.schema import OptimizationSettings

_LARGEST_BATCH_EXPONENT = 12
_TIMEOUT_STEP_MS = 10  # the shortest hold worth having
_TIMEOUT_REACH = 4  # holds may grow to this multiple of the configured one


class Knob(Enum):
    """A setting that the tuner may move, by its name."""

    BATCH = "max_batch_size"
    TIMEOUT = "batch_timeout_ms"
    CACHE = "max_memory_mb"


@dataclass(frozen=True, slots=True)
class Values:
    """The values of all knobs in one configuration."""

    max_batch_size: int
    batch_timeout_ms: int
    max_memory_mb: int

    def of(self, knob: Knob) -> int:
        """Return the value of one knob."""
        value: int = getattr(self, knob.value)
        return value

    def with_(self, knob: Knob, value: int) -> Values:
        """Return the same values with one knob moved."""
        changed: dict[str, int] = {knob.value: value}
        return replace(self, **changed)

    def moved(self, other: Values) -> tuple[Knob, ...]:
        """Return the knobs in which the two differ."""
        return tuple(knob for knob in Knob if self.of(knob) != other.of(knob))


@dataclass(frozen=True, slots=True)
class Reach:
    """The lowest and the highest value of a knob."""

    low: int
    high: int

    def clip(self, value: int) -> int:
        """Return the nearest value within."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True)
class KnobBounds:
    """The reach of each knob. A knob that is missing is not moved."""

    reaches: dict[Knob, Reach]

    def allows(self, knob: Knob) -> bool:
        """True if the knob may be moved."""
        return knob in self.reaches

    def clip(self, values: Values, home: Values) -> Values:
        """Return `values` within the reaches; knobs that may not be moved take the value of `home`."""
        for knob in Knob:
            reach = self.reaches.get(knob)
            values = values.with_(knob, home.of(knob) if reach is None else reach.clip(values.of(knob)))
        return values

    def step(self, values: Values, knob: Knob, rungs: int) -> Values | None:
        """Return `values` with one knob moved by `rungs` rungs of its ladder (down if negative), within its reach.

        Returns None if the knob cannot move in that direction.

        The batch has two rungs per doubling (1, 2, 3, 4, 6, 8, 12, ...). The timeout halves or doubles. The cache moves
        to the end of its reach at once: more memory within the bound never serves slower, so there is no optimum in
        between, and a trial shows most if the difference is largest.
        """
        reach = self.reaches.get(knob)
        if reach is None or not rungs:
            return None
        before = values.of(knob)
        if knob is Knob.BATCH:
            after = reach.clip(_rung(before, rungs))
        elif knob is Knob.TIMEOUT:
            after = reach.clip(_hold(before, up=rungs > 0))
        else:
            after = reach.high if rungs > 0 else reach.low
        return None if after == before else values.with_(knob, after)


def values_of(optimization: OptimizationSettings) -> Values:
    """Return the configured values."""
    batcher, cache = optimization.batcher, optimization.cache
    return Values(batcher.max_batch_size, batcher.batch_timeout_ms, cache.max_memory_mb if cache.enabled else 0)


def bounds_of(optimization: OptimizationSettings, *, slots: int, caches: bool) -> KnobBounds:
    """Return the bounds that the settings give the tuner.

    A knob is missing if its switch is off, or if it would have no effect: only min_batch_size > 1 makes a hold.

    Args:
        optimization: The settings.
        slots: Slots of the engine that serves.
        caches: True if the engine has a prefix cache whose size can be changed.
    """
    batcher, cache, tuner = optimization.batcher, optimization.cache, optimization.tuner
    reaches: dict[Knob, Reach] = {}
    if tuner.enable_batch_size_tuning and batcher.enabled and slots > batcher.min_batch_size:
        reaches[Knob.BATCH] = Reach(batcher.min_batch_size, slots)
    if tuner.enable_timeout_tuning and batcher.enabled and batcher.min_batch_size > 1:
        reaches[Knob.TIMEOUT] = Reach(0, max(_TIMEOUT_REACH * batcher.batch_timeout_ms, _TIMEOUT_STEP_MS))
    if tuner.enable_cache_size_tuning and cache.enabled and caches:
        bound = tuner.cache_max_memory_mb
        reaches[Knob.CACHE] = Reach(0, cache.max_memory_mb if bound is None else bound)
    return KnobBounds(reaches)


def _rung(batch: int, rungs: int) -> int:
    """Return the batch size `rungs` rungs from `batch`, which need not be on a rung."""
    ladder = sorted({1, *(size << power for power in range(_LARGEST_BATCH_EXPONENT) for size in (2, 3))})
    if rungs > 0:
        above = [size for size in ladder if size > batch]
        return above[min(rungs, len(above)) - 1]
    below = [size for size in ladder if size < batch]
    return below[max(rungs, -len(below))] if below else batch


def _hold(timeout_ms: int, *, up: bool) -> int:
    if up:
        return max(_TIMEOUT_STEP_MS, 2 * timeout_ms)
    return timeout_ms // 2 if timeout_ms // 2 >= _TIMEOUT_STEP_MS else 0
