"""What the tuner may move, how far, and in which steps."""

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
    """One thing that the tuner may move, by the name of its setting."""

    BATCH = "max_batch_size"
    TIMEOUT = "batch_timeout_ms"
    CACHE = "max_memory_mb"


@dataclass(frozen=True, slots=True)
class Values:
    """One configuration, as far as the tuner moves it."""

    max_batch_size: int
    batch_timeout_ms: int
    max_memory_mb: int

    def of(self, knob: Knob) -> int:
        """The value of one knob."""
        value: int = getattr(self, knob.value)
        return value

    def with_(self, knob: Knob, value: int) -> Values:
        """The same with one knob moved."""
        changed: dict[str, int] = {knob.value: value}
        return replace(self, **changed)

    def moved(self, other: Values) -> tuple[Knob, ...]:
        """The knobs in which the two differ."""
        return tuple(knob for knob in Knob if self.of(knob) != other.of(knob))


@dataclass(frozen=True, slots=True)
class Reach:
    """From where to where a knob may be moved, both included."""

    low: int
    high: int

    def clip(self, value: int) -> int:
        """The nearest value within."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True)
class KnobBounds:
    """The reach of each knob; a knob that is missing stays where it is."""

    reaches: dict[Knob, Reach]

    def allows(self, knob: Knob) -> bool:
        """Whether the knob may be moved at all."""
        return knob in self.reaches

    def clip(self, values: Values, home: Values) -> Values:
        """`values` within the reaches; knobs that may not be moved take the value of `home`."""
        for knob in Knob:
            reach = self.reaches.get(knob)
            values = values.with_(knob, home.of(knob) if reach is None else reach.clip(values.of(knob)))
        return values

    def step(self, values: Values, knob: Knob, rungs: int) -> Values | None:
        """`values` with one knob moved so many rungs of its ladder up (or down, if negative).

        Less where the reach ends before; None where the knob cannot move that way at all.

        The batch has two rungs to a doubling (1, 2, 3, 4, 6, 8, 12, ...). The timeout halves or doubles. The cache goes
        to the end of its reach at once: more memory within the bound never serves slower, so there is nothing to look
        for in between, and a trial shows most where the difference is largest.
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
    """What the settings configure."""
    batcher, cache = optimization.batcher, optimization.cache
    return Values(batcher.max_batch_size, batcher.batch_timeout_ms, cache.max_memory_mb if cache.enabled else 0)


def bounds_of(optimization: OptimizationSettings, *, slots: int, caches: bool) -> KnobBounds:
    """How far the settings let the tuner go.

    slots: of the engine that serves. caches: whether it has a prefix cache whose size can be changed. A knob is left
    out where its switch is off, and where it would move nothing: a hold is only ever made for min_batch_size > 1.
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
    """So many rungs from `batch`, which need not be on one."""
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
