"""The prefix cache that the settings ask for, over the engine that serves."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeGuard

from muai_lab.engines.base import Engine, StepEngine
from muai_lab.stack.prefix_cache import BLOCK_TOKENS, PrefixCache

if TYPE_CHECKING:
    from muai_lab.settings.schema import OptimizationSettings

log = logging.getLogger(__name__)

_MIB = 2**20


def cache_budget(optimization: OptimizationSettings) -> int:
    """Bytes that the prefix cache may hold, 0 where the settings want none."""
    cache = optimization.cache
    return cache.max_memory_mb * _MIB if optimization.enabled and cache.enabled else 0


def caches(engine: Engine) -> TypeGuard[StepEngine]:
    """Whether an engine's prefixes are kept by us; one that schedules itself may have a cache of its own."""
    return isinstance(engine, StepEngine) and engine.prefix_refusal() is None


def cache_problem(optimization: OptimizationSettings, engine: Engine) -> str | None:
    """Why the engine cannot have the cache that the settings ask for: not even one block of it fits."""
    budget = cache_budget(optimization)
    if not budget or not caches(engine):
        return None
    block = BLOCK_TOKENS * engine.position_bytes()
    if budget >= block:
        return None
    return (
        f"optimization.cache.max_memory_mb = {optimization.cache.max_memory_mb} is less than one block of the prefix "
        f"cache ({BLOCK_TOKENS} tokens, {block / _MIB:.1f} MB with this model): raise it to at least "
        f"{-(-block // _MIB)}, or turn the cache off with optimization.cache.enabled=false"
    )


def open_cache(optimization: OptimizationSettings, engine: StepEngine) -> PrefixCache | None:
    """The engine's prefix cache; without a budget it is there but off, so that it can be turned on while serving.

    None, and a line in the log where a cache was wanted, for an engine whose prefixes cannot be copied.
    """
    refusal = engine.prefix_refusal()
    budget = cache_budget(optimization)
    if refusal is not None:
        if budget:
            log.info("engine %s serves without a prefix cache: %s", engine.info.name, refusal)
        return None
    return PrefixCache(
        budget,
        block_bytes=BLOCK_TOKENS * engine.position_bytes(),
        policy=optimization.cache.eviction_policy,
        seed=f"{engine.info.name} {engine.info.dtype}",
    )
