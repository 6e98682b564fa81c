"""What holds for the prefix cache under any use, against a plain model of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from muai_lab.stack.prefix_cache import CachedBlock, Match, PrefixCache, Store

BLOCK = 2
BYTES = 7

SALTS = st.sampled_from(["", "a", "b"])
# Few different tokens, so that sequences share prefixes.
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=13)

Path = tuple[str, tuple[int, ...]]  # salt, and every token up to the block's end


@dataclass(frozen=True)
class Sized:
    """A payload that knows which prefix it belongs to."""

    path: Path
    nbytes: int = BYTES


@dataclass
class Known:
    """What the model knows of a stored block."""

    block: CachedBlock
    stored: int
    used: int
    holders: list[object] = field(default_factory=list)


class PrefixCacheMachine(RuleBasedStateMachine):
    """The model keeps every stored prefix in a dictionary, and evicts by looking at all of them."""

    @initialize(budget=st.integers(0, 8), policy=st.sampled_from(["lru", "fifo"]))
    def start(self, budget: int, policy: str) -> None:
        self.budget = budget * BYTES
        self.policy = policy
        self.cache = PrefixCache(self.budget, block_bytes=BYTES, block_tokens=BLOCK, policy=policy)  # type: ignore[arg-type]
        self.known: dict[Path, Known] = {}
        self.time = 0
        self.serial = 0
        self.matches: list[Match] = []
        self.pending: list[tuple[Store, list[Path]]] = []
        self.evicted = 0

    @rule(tokens=TOKENS, salt=SALTS)
    def match(self, tokens: list[int], salt: str) -> None:
        self.time += 1
        match = self.cache.match(tokens, salt)

        expected = self.longest(tokens[:-1], salt)
        assert list(match.blocks) == [self.known[path].block for path in expected]
        assert match.tokens == len(expected) * BLOCK < len(tokens)
        for path, block in zip(expected, match.blocks, strict=True):
            assert block.payload is None or block.payload.path == path, "a payload of other tokens was found"
            self.known[path].used = self.time
            self.known[path].holders.append(match)
        self.matches.append(match)

    @precondition(lambda self: getattr(self, "matches", None))
    @rule(pick=st.integers(0, 50))
    def release(self, pick: int) -> None:
        match = self.matches.pop(pick % len(self.matches))
        self.cache.release(match)
        self.let_go(match)
        self.shrink(self.budget, set())

    @rule(tokens=TOKENS, salt=SALTS)
    def store(self, tokens: list[int], salt: str) -> None:
        self.time += 1
        new = self.cache.store(tokens, salt)

        path = self.longest(tokens, salt)
        known = len(path)
        for one in path:
            self.known[one].used = self.time
        assert new.begin == known * BLOCK
        blocks = iter(new.blocks)
        for end in range((known + 1) * BLOCK, len(tokens) + 1, BLOCK):
            if not self.shrink(self.budget - BYTES, set(path)):
                break
            path.append((salt, tuple(tokens[:end])))
            self.known[path[-1]] = Known(next(blocks), self.serial, self.time)
            self.serial += 1
        assert next(blocks, None) is None, "more was stored than there is room for"
        for one in path if new.blocks else ():
            self.known[one].holders.append(new)
        self.pending.append((new, path[known:]))

    @precondition(lambda self: getattr(self, "pending", None))
    @rule(pick=st.integers(0, 50))
    def fill(self, pick: int) -> None:
        new, paths = self.pending.pop(pick % len(self.pending))
        self.cache.fill(new, [Sized(path) for path in paths])
        self.let_go(new)
        self.shrink(self.budget, set())

    @rule(budget=st.integers(0, 8))
    def resize(self, budget: int) -> None:
        self.budget = budget * BYTES
        self.cache.resize(self.budget)
        self.shrink(self.budget, set())

    @rule(policy=st.sampled_from(["lru", "fifo"]))
    def change_policy(self, policy: str) -> None:
        self.policy = policy
        self.cache.set_policy(policy)  # type: ignore[arg-type]

    @invariant()
    def the_model_agrees(self) -> None:
        if not hasattr(self, "cache"):
            return
        counts = self.cache.counts
        assert counts.blocks == len(self.known)
        assert counts.stored_bytes == len(self.known) * BYTES
        assert counts.evicted_blocks == self.evicted
        held = sum(bool(one.holders) for one in self.known.values())
        assert counts.stored_bytes <= max(self.budget, held * BYTES), "more than the budget is stored"
        for salt, tokens in self.known:
            assert len(tokens) == BLOCK or (salt, tokens[:-BLOCK]) in self.known, "a block outlived its parent"
        for one in self.known.values():
            pending = any(one.block in new.blocks for new, _ in self.pending)
            assert (one.block.payload is None) == pending

    def longest(self, tokens: list[int], salt: str) -> list[Path]:
        paths = [(salt, tuple(tokens[:end])) for end in range(BLOCK, len(tokens) + 1, BLOCK)]
        count = next((count for count, path in enumerate(paths) if path not in self.known), len(paths))
        return paths[:count]

    def let_go(self, holder: object) -> None:
        for one in self.known.values():
            one.holders = [other for other in one.holders if other is not holder]

    def shrink(self, size: int, spared: set[Path]) -> bool:
        while len(self.known) * BYTES > size:
            parents = {(salt, tokens[:-BLOCK]) for salt, tokens in self.known}
            leaves = [
                (one.used if self.policy == "lru" else one.stored, one.stored, path)
                for path, one in self.known.items()
                if path not in parents and path not in spared and not one.holders
            ]
            if not leaves:
                return False
            _, _, path = min(leaves)
            assert self.known.pop(path).block.payload is None, "an evicted block keeps its payload"
            self.evicted += 1
        return True


PrefixCacheMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPrefixCacheUnderAnyUse = PrefixCacheMachine.TestCase
