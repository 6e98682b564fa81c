"""A batcher's use of the prefix cache: cached prefixes go into slots, and the contents of slots into the cache.

Pure decisions, like the batcher's own. A plan lists the copies, in this order: out of slots whose sequences computed
something new (`CopyOut`), then, after the slots of ended sequences are released, into the slots of those that join
(`CopyIn`). So the blocks of one sequence can serve the next one in the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muai_lab.engines.base import KVBlock
from muai_lab.stack.events import CacheLookup, CacheState, Event
from muai_lab.stack.prefix_cache import Match, Policy, PrefixCache, Store
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.sharing import SharingWatch


@dataclass(frozen=True, slots=True)
class CopyOut:
    """Copy positions of a slot into the blocks of `store`; `Scheduler.copied_out` takes in the result."""

    slot: int
    store: Store


@dataclass(frozen=True, slots=True)
class CopyIn:
    """Begin the sequence of a free slot with the blocks of a match."""

    slot: int
    match: Match

    @property
    def payloads(self) -> list[KVBlock]:
        """The blocks for the first positions of the slot; the plan's copies out have filled them all in."""
        return [block.payload for block in self.match.blocks if block.payload is not None]


NO_MATCH = Match((), 0)


class PrefixReuse:
    """The prefix cache as one batcher uses it. Without a cache, or without a budget, nothing is reused.

    Prompts are looked up when they are admitted, and stored once they are computed, so that requests which run at the
    same time share them too. Outputs are stored when they end, because the next turn of a conversation begins with
    them. While prompts share nothing, nothing is stored (see `SharingWatch`).
    """

    def __init__(self, cache: PrefixCache | None) -> None:
        self.cache = cache
        self._sharing = SharingWatch()
        self._outs: list[CopyOut] = []
        self._ins: list[CopyIn] = []
        self._copying: list[Match] = []  # of the present plan
        self._evicted = 0
        self._reported: tuple[int, int, int] | None = None

    @property
    def on(self) -> bool:
        """True if prompts are looked up and stored."""
        return self.cache is not None and self.cache.on

    def find(self, request: GenerationRequest) -> Match:
        """Find the longest cached prefix of a prompt; `use` it or `drop` it."""
        if self.cache is None or not self.cache.on:
            return NO_MATCH
        return self.cache.match(request.prompt, request.cache_salt)

    def drop(self, match: Match) -> None:
        """Unpin the match of a request that does not join."""
        if self.cache is not None:
            self.cache.release(match)

    def use(self, match: Match, slot: int) -> None:
        """Plan to copy the prefix into the slot of its request."""
        if self.on:
            self._sharing.admitted(match)
        if match.blocks:
            self._ins.append(CopyIn(slot, match))

    def keep(self, slot: int, tokens: Sequence[int], salt: str) -> None:
        """Store the whole blocks of a slot's tokens, unless they are stored already or storing is not worth it.

        The slot must hold all of the tokens.
        """
        if self.cache is not None and self.cache.on and self._sharing.worth_keeping:
            store = self.cache.store(tokens, salt)
            if store.blocks:
                self._outs.append(CopyOut(slot, store))

    def copies(self) -> tuple[tuple[CopyOut, ...], tuple[CopyIn, ...]]:
        """Return the copies of the next plan."""
        outs, ins = tuple(self._outs), tuple(self._ins)
        self._outs, self._ins = [], []
        self._copying += [copy.match for copy in ins]
        return outs, ins

    def copied_out(self, copy: CopyOut, payloads: Sequence[KVBlock]) -> None:
        """Take in the blocks that the engine copied."""
        if self.cache is not None:
            self.cache.fill(copy.store, payloads)

    def copied_in(self) -> None:
        """Unpin the blocks that the last plan copied from: it was carried out, or never will be."""
        for match in self._copying:
            self.drop(match)
        self._copying = []

    def forget(self) -> None:
        """Drop all planned copies and all blocks, because a step failed.

        The engine has released its slots, and the failed step may have written to any block.
        """
        self._outs, self._ins, self._copying = [], [], []
        if self.cache is not None:
            self.cache.clear()

    def turn_off(self) -> None:
        """Store and find nothing until another budget is set."""
        if self.cache is not None:
            self.cache.resize(0)

    def set_cache(self, budget_bytes: int, policy: Policy) -> None:
        """Change budget and policy of the cache; the excess is evicted. Without a cache nothing happens."""
        if self.cache is not None:
            was_on = self.cache.on
            if policy != self.cache.policy:
                self.cache.set_policy(policy)
            self.cache.resize(budget_bytes)
            if not was_on:
                self._sharing = SharingWatch()  # earlier counts say nothing about the traffic now

    def looked_up(self, request: GenerationRequest, match: Match, now: float) -> list[Event]:
        """Return the event of the look-up for a request that was admitted."""
        if not self.on:
            return []
        return [CacheLookup(request.request_id, now, len(request.prompt), match.tokens)]

    def news(self, now: float) -> list[Event]:
        """Return an event if the contents of the cache have changed since the last call."""
        if self.cache is None:
            return []
        counts = self.cache.counts
        evicted, budget_bytes = counts.evicted_blocks - self._evicted, self.cache.budget_bytes
        state = (counts.blocks, counts.evicted_blocks, budget_bytes)
        if state == self._reported:
            return []
        self._reported, self._evicted = state, counts.evicted_blocks
        return [CacheState(now, counts.stored_bytes, counts.blocks, evicted, budget_bytes)]
