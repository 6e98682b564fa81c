"""The prefix cache as configured, for the engine that serves."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeGuard

from muai_lab.engines.base import Engine, PrefixEngine, StepEngine
from muai_lab.stack.prefix_cache import BLOCK_TOKENS, PrefixCache

if TYPE_CHECKING:
    from muai_lab.settings.schema import OptimizationSettings

log = logging.getLogger(__name__)

_MIB = 2**20


def cache_budget(optimization: OptimizationSettings) -> int:
    """Return the bytes that the prefix cache may hold; 0 if it is off."""
    cache = optimization.cache
    return cache.max_memory_mb * _MIB if optimization.enabled and cache.enabled else 0


def caches(engine: Engine) -> TypeGuard[PrefixEngine]:
    """True if we keep an engine's prefixes; one that schedules itself may have a cache of its own."""
    return isinstance(engine, PrefixEngine) and engine.prefix_refusal() is None


def cache_problem(optimization: OptimizationSettings, engine: Engine) -> str | None:
    """Return why the configured cache is too small for even one block of this engine; None if it is not."""
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
    """Return the engine's prefix cache. Without a budget it exists but is off, and can be turned on while serving.

    Returns None for an engine whose prefixes cannot be copied; the log says so if a cache is configured.
    """
    budget = cache_budget(optimization)
    if not caches(engine):
        if budget:
            log.info("engine %s serves without a prefix cache: %s", engine.info.name, engine.prefix_refusal())
        return None
    return PrefixCache(
        budget,
        block_bytes=BLOCK_TOKENS * engine.position_bytes(),
        policy=optimization.cache.eviction_policy,
        seed=f"{engine.info.name} {engine.info.dtype}",
    )
