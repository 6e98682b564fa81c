"""The prefix cache: the blocks of earlier prompts and outputs that are stored, found again, and evicted.

It only keeps the index: the engine owns the contents of blocks, and the driver copies them. It reads no clock, because
it counts uses. A block holds `block_tokens` tokens of one sequence, which follow the tokens of its parent. So the
blocks form a tree, and a prefix is a path from its root. Blocks are found by chained digests: the digest of a block
covers the model, the tenant's salt and every token up to the block's end. A match also compares tokens, parent and
salt, so equal digests of different blocks do no harm.

Source of the scheme: vLLM's automatic prefix caching, https://docs.vllm.ai/en/latest/design/prefix_caching.html
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from muai_lab.engines.base import KVBlock

Policy = Literal["lru", "fifo"]

BLOCK_TOKENS = 16
"""On average half a block is recomputed at the end of a prefix; smaller blocks cost more to look up and to copy."""


class CachedBlock:
    """One block of the cache. payload: its keys and values, None until the driver has copied them out of a slot."""

    __slots__ = ("children", "digest", "found", "parent", "payload", "pins", "serial", "tokens", "used")

    def __init__(self, digest: bytes, parent: CachedBlock | str, tokens: bytes, serial: int) -> None:
        """parent: the block before, or the salt of the first one."""
        self.digest = digest
        self.parent = parent
        self.tokens = tokens
        self.serial = serial  # numbers blocks in the order in which they were stored
        self.used = 0  # the last use of the block, or of an evicted child
        self.found = False  # as the last block of a match
        self.children = 0
        self.pins = 0
        self.payload: KVBlock | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """The longest prefix found. It stays in the cache until it is released.

    tokens: tokens that it covers. beyond: digest of the next whole block of the prompt, empty if there is none.
    """

    blocks: tuple[CachedBlock, ...]
    tokens: int
    beyond: bytes = b""


@dataclass(frozen=True, slots=True)
class Store:
    """Blocks that were added to the cache; they stay until their payloads are filled in.

    They cover consecutive positions from `begin`, `block_tokens` each.
    """

    begin: int
    blocks: tuple[CachedBlock, ...]
    block_tokens: int


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """Bytes and blocks that are stored. evicted_blocks: since the beginning."""

    stored_bytes: int
    blocks: int
    evicted_blocks: int


class PrefixCache:
    """Blocks of earlier sequences, under a budget of bytes that is never exceeded.

    Only leaves are evicted, so every stored block can be reached. `lru` evicts the least recently used leaf, `fifo` the
    one that was stored first. The blocks of a match are pinned until it is released, those of a store until it is
    filled in.
    """

    def __init__(
        self,
        budget_bytes: int,
        *,
        block_bytes: int,
        block_tokens: int = BLOCK_TOKENS,
        policy: Policy = "lru",
        seed: str = "",
    ) -> None:
        """block_bytes: size of every payload. seed: part of every digest; names the model and its dtype."""
        self.block_bytes = block_bytes
        self.block_tokens = block_tokens
        self._budget = budget_bytes
        self._policy: Policy = policy
        self._seed = hashlib.sha256(seed.encode())
        self._blocks: dict[bytes, CachedBlock] = {}
        self._leaves: list[tuple[int, int, CachedBlock]] = []  # a heap; see `_evict_one` for entries out of date
        self._uses = 0
        self._serials = 0
        self._evicted = 0

    @property
    def budget_bytes(self) -> int:
        """Most bytes that may be stored."""
        return self._budget

    @property
    def policy(self) -> Policy:
        """The order of eviction."""
        return self._policy

    @property
    def on(self) -> bool:
        """True if the budget holds at least one block."""
        return self._budget >= self.block_bytes

    @property
    def counts(self) -> CacheCounts:
        """Counts of the stored and the evicted blocks."""
        count = len(self._blocks)
        return CacheCounts(count * self.block_bytes, count, self._evicted)

    def match(self, prompt: Sequence[int], salt: str = "") -> Match:
        """Find the longest stored prefix of the prompt, without its last token. Release the match after use."""
        pieces = self._pieces(prompt)
        digests = self._digests(pieces, salt)
        findable = max(len(prompt) - 1, 0) // self.block_tokens
        found = self._follow(pieces[:findable], digests[:findable], salt)
        self._uses += 1
        if found:
            found[-1].used = self._uses
            found[-1].pins += 1  # the blocks before it have a child, so they stay too
        beyond = digests[len(found)] if len(found) < len(digests) else b""
        return Match(tuple(found), len(found) * self.block_tokens, beyond)

    def release(self, match: Match) -> None:
        """Unpin a match that was copied, or is not needed any more."""
        if match.blocks:
            match.blocks[-1].pins -= 1
            self._shrink_to(self._budget)  # if the budget was lowered meanwhile

    def store(self, tokens: Sequence[int], salt: str = "") -> Store:
        """Add every whole block of the tokens that is not stored, from the front, as far as the budget allows."""
        pieces = self._pieces(tokens)
        digests = self._digests(pieces, salt)
        path = self._follow(pieces, digests, salt)
        known = len(path)
        parent: CachedBlock | str = path[-1] if path else salt
        self._uses += 1
        if path:
            path[-1].used = self._uses
        for digest, piece in zip(digests[known:], pieces[known:], strict=True):
            if digest in self._blocks or not self._make_room(parent):
                break  # a block in the first case is another one with the same digest
            parent = self._add(CachedBlock(digest, parent, piece, self._serials))
            path.append(parent)
        if len(path) > known:
            path[-1].pins += 1
            self._note_leaf(path[-1])
        return Store(known * self.block_tokens, tuple(path[known:]), self.block_tokens)

    def fill(self, store: Store, payloads: Sequence[KVBlock]) -> None:
        """Take in the blocks that the engine copied. Raises ValueError for a payload of another size."""
        for block, payload in zip(store.blocks, payloads, strict=True):
            if payload.nbytes != self.block_bytes:
                raise ValueError(f"a block of the cache has {payload.nbytes} bytes, not {self.block_bytes}")
            block.payload = payload
        if store.blocks:
            store.blocks[-1].pins -= 1
            self._shrink_to(self._budget)

    def clear(self) -> None:
        """Drop every block, also the pinned ones: their matches and stores must not be used any more."""
        self._evicted += len(self._blocks)
        self._blocks.clear()
        self._leaves.clear()

    def resize(self, budget_bytes: int) -> None:
        """Change the budget. The excess is evicted at once, pinned blocks when they are released."""
        self._budget = budget_bytes
        self._shrink_to(budget_bytes)

    def set_policy(self, policy: Policy) -> None:
        """Change the policy; stored blocks stay."""
        self._policy = policy
        self._leaves = [(self._rank(leaf), leaf.serial, leaf) for leaf in self._blocks.values() if not leaf.children]
        heapq.heapify(self._leaves)

    def _pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """Return the whole blocks of the tokens, four bytes per token."""
        data = array("I", tokens).tobytes()
        width = 4 * self.block_tokens
        return [data[begin : begin + width] for begin in range(0, len(data) - width + 1, width)]

    def _digests(self, pieces: Sequence[bytes], salt: str) -> list[bytes]:
        hasher = self._seed.copy()
        hasher.update(hashlib.sha256(salt.encode()).digest())
        digests = []
        for piece in pieces:
            hasher.update(piece)
            digests.append(hasher.digest())
        return digests

    def _follow(self, pieces: Sequence[bytes], digests: Sequence[bytes], salt: str) -> list[CachedBlock]:
        path: list[CachedBlock] = []
        parent: CachedBlock | str = salt
        for digest, piece in zip(digests, pieces, strict=True):
            block = self._blocks.get(digest)
            if block is None or block.tokens != piece or block.parent != parent:
                break
            path.append(block)
            parent = block
        return path

    def _add(self, block: CachedBlock) -> CachedBlock:
        self._serials += 1
        block.used = self._uses
        self._blocks[block.digest] = block
        if isinstance(block.parent, CachedBlock):
            block.parent.children += 1
        return block

    def _make_room(self, parent: CachedBlock | str) -> bool:
        """Evict until one more block fits, but nothing of the path to its parent."""
        if isinstance(parent, str):
            return self._shrink_to(self._budget - self.block_bytes)
        parent.pins += 1
        try:
            return self._shrink_to(self._budget - self.block_bytes)
        finally:
            parent.pins -= 1

    def _shrink_to(self, size: int) -> bool:
        """Evict until at most `size` bytes are stored. Returns False if pinned blocks do not allow it."""
        pinned: list[CachedBlock] = []
        while len(self._blocks) * self.block_bytes > size and self._leaves:
            self._evict_one(pinned)
        for block in pinned:
            self._note_leaf(block)
        return len(self._blocks) * self.block_bytes <= size

    def _evict_one(self, pinned: list[CachedBlock]) -> None:
        """Take the first leaf and evict it, unless it is pinned or its entry is out of date.

        An entry is out of date if its block is gone, has children, or was used since. A block gets a new entry when it
        becomes a leaf again; a block that was used gets it here.
        """
        rank, _, block = heapq.heappop(self._leaves)
        if block.children or self._blocks.get(block.digest) is not block:
            return
        if rank != self._rank(block):
            self._note_leaf(block)
        elif block.pins:
            pinned.append(block)
        else:
            del self._blocks[block.digest]
            block.payload = None
            self._evicted += 1
            parent = block.parent
            if isinstance(parent, CachedBlock):
                parent.children -= 1
                parent.used = max(parent.used, block.used)
                if not parent.children:
                    self._note_leaf(parent)

    def _note_leaf(self, block: CachedBlock) -> None:
        heapq.heappush(self._leaves, (self._rank(block), block.serial, block))

    def _rank(self, block: CachedBlock) -> int:
        """Return the rank of a leaf; the lowest is evicted first."""
        return block.used if self._policy == "lru" else block.serial
