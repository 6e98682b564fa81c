"""Which cached prefixes go into which slots, and what of the slots is kept: a scheduler's use of the prefix cache.

Pure decisions like the scheduler's own. A plan says what is to be copied, in this order: out of slots whose sequences
computed something new (`CopyOut`), then, when the slots of ended sequences are released, into the slots of those that
join (`CopyIn`). So what one sequence leaves behind can serve the next one in the same step.
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
    """Copy positions of a slot into the blocks of `store`, then say so (`Scheduler.copied_out`)."""

    slot: int
    store: Store


@dataclass(frozen=True, slots=True)
class CopyIn:
    """Begin the sequence of a free slot with the blocks of a match."""

    slot: int
    match: Match

    @property
    def payloads(self) -> list[KVBlock]:
        """What is written to the first positions of the slot; the plan's copies out have filled all of it in."""
        return [block.payload for block in self.match.blocks if block.payload is not None]


NO_MATCH = Match((), 0)


class PrefixReuse:
    """The prefix cache as one scheduler uses it; without a cache, or one that has no budget, nothing is reused.

    Prompts are looked up when they are admitted, and kept once they are computed, so that those which run at the same
    time share them too; their outputs are kept when they end, since the next turn of a conversation begins with them.
    While prompts share nothing, nothing is kept.
    """

    def __init__(self, cache: PrefixCache | None) -> None:
        self.cache = cache
        self._sharing = SharingWatch()
        self._outs: list[CopyOut] = []
        self._ins: list[CopyIn] = []
        self._copying: list[Match] = []  # of the present plan
        self._evicted = 0
        self._told: tuple[int, int, int] | None = None

    @property
    def on(self) -> bool:
        """Whether anything is looked up and kept."""
        return self.cache is not None and self.cache.on

    def find(self, request: GenerationRequest) -> Match:
        """The longest prefix of a prompt that is cached; `use` it or `drop` it."""
        if self.cache is None or not self.cache.on:
            return NO_MATCH
        return self.cache.match(request.prompt, request.cache_salt)

    def drop(self, match: Match) -> None:
        """The request does not join after all."""
        if self.cache is not None:
            self.cache.release(match)

    def use(self, match: Match, slot: int) -> None:
        """Copy the prefix into the slot that its request has got."""
        if self.on:
            self._sharing.admitted(match)
        if match.blocks:
            self._ins.append(CopyIn(slot, match))

    def keep(self, slot: int, tokens: Sequence[int], salt: str) -> None:
        """Keep the whole blocks of a slot's tokens, as far as they are not kept already and that is worth it.

        The slot holds all of them.
        """
        if self.cache is not None and self.cache.on and self._sharing.worth_keeping:
            store = self.cache.store(tokens, salt)
            if store.blocks:
                self._outs.append(CopyOut(slot, store))

    def copies(self) -> tuple[tuple[CopyOut, ...], tuple[CopyIn, ...]]:
        """What the next plan copies."""
        outs, ins = tuple(self._outs), tuple(self._ins)
        self._outs, self._ins = [], []
        self._copying += [copy.match for copy in ins]
        return outs, ins

    def copied_out(self, copy: CopyOut, payloads: Sequence[KVBlock]) -> None:
        """Take in the blocks that the engine copied."""
        if self.cache is not None:
            self.cache.fill(copy.store, payloads)

    def copied_in(self) -> None:
        """The plan was carried out, or never will be: what it copied from may be evicted again."""
        for match in self._copying:
            self.drop(match)
        self._copying = []

    def forget(self) -> None:
        """The engine has lost its slots in a failed step: copies that were planned are not made any more.

        What was kept before is dropped with them, since nobody knows what a step that failed has written.
        """
        self._outs, self._ins, self._copying = [], [], []
        if self.cache is not None:
            self.cache.clear()

    def turn_off(self) -> None:
        """Keep and find nothing any more, until another budget is set."""
        if self.cache is not None:
            self.cache.resize(0)

    def set_cache(self, budget_bytes: int, policy: Policy) -> None:
        """Change budget and policy of the cache; what is too much is evicted. Without a cache nothing happens."""
        if self.cache is not None:
            was_on = self.cache.on
            if policy != self.cache.policy:
                self.cache.set_policy(policy)
            self.cache.resize(budget_bytes)
            if not was_on:
                self._sharing = SharingWatch()  # what was seen before tells nothing of the traffic now

    def looked_up(self, request: GenerationRequest, match: Match, now: float) -> list[Event]:
        """What there is to tell of a request that was admitted."""
        if not self.on:
            return []
        return [CacheLookup(request.request_id, now, len(request.prompt), match.tokens)]

    def news(self, now: float) -> list[Event]:
        """How full the cache is, where that changed since the last call."""
        if self.cache is None:
            return []
        counts = self.cache.counts
        evicted, budget_bytes = counts.evicted_blocks - self._evicted, self.cache.budget_bytes
        state = (counts.blocks, counts.evicted_blocks, budget_bytes)
        if state == self._told:
            return []
        self._told, self._evicted = state, counts.evicted_blocks
        return [CacheState(now, counts.stored_bytes, counts.blocks, evicted, budget_bytes)]
