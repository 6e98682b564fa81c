"""The prefix cache: which blocks of earlier prompts and outputs are kept, found again, and given up.

Bookkeeping only: what a block holds is the engine's, and copying it is the driver's. No clock is read either, since the
order of use is counted. A block is `block_tokens` tokens of one sequence, all of which come after the tokens of its
parent, so the blocks form a tree, and a prefix is a path from its root. Blocks are found by chained digests: that of a
block covers the model, the tenant's salt and every token up to the block's end. A digest only says where to look; that
the tokens, the parent and the salt are the very same is checked besides.

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
"""Half a block is recomputed on average where a prefix ends; smaller blocks cost more to look up and to copy."""


class CachedBlock:
    """One block of the cache. payload: its keys and values, None until the driver has copied them out of a slot."""

    __slots__ = ("children", "digest", "found", "parent", "payload", "pins", "serial", "tokens", "used")

    def __init__(self, digest: bytes, parent: CachedBlock | str, tokens: bytes, serial: int) -> None:
        """parent: the block before, or the salt where there is none."""
        self.digest = digest
        self.parent = parent
        self.tokens = tokens
        self.serial = serial  # counts blocks in the order in which they were stored
        self.used = 0  # the last use of the block, or of one behind it that was evicted since
        self.found = False  # by a prompt that had no further one
        self.children = 0
        self.pins = 0
        self.payload: KVBlock | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """The longest prefix found. It stays in the cache until it is released.

    tokens: how many it covers. beyond: digest of the whole block of the prompt that comes next, empty if there is none.
    """

    blocks: tuple[CachedBlock, ...]
    tokens: int
    beyond: bytes = b""


@dataclass(frozen=True, slots=True)
class Store:
    """Blocks that have a place in the cache now; they stay until their payloads are filled in.

    They cover the positions from `begin`, one after the other, `block_tokens` each.
    """

    begin: int
    blocks: tuple[CachedBlock, ...]
    block_tokens: int


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """Bytes and blocks that are stored. evicted_blocks: from the beginning."""

    stored_bytes: int
    blocks: int
    evicted_blocks: int


class PrefixCache:
    """Blocks of earlier sequences, under a budget of bytes that is never exceeded.

    Only leaves are evicted, so a block that is kept can always be reached. `lru` evicts the least recently used leaf,
    `fifo` the one that was stored first. What a match holds is pinned until it is released, what is stored until it is
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
        """block_bytes: of every payload. seed: what else must be equal for a block to be of use: model and dtype."""
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
        """What is evicted first."""
        return self._policy

    @property
    def on(self) -> bool:
        """Whether anything can be stored at all."""
        return self._budget >= self.block_bytes

    @property
    def counts(self) -> CacheCounts:
        """What is stored, and what happened so far."""
        count = len(self._blocks)
        return CacheCounts(count * self.block_bytes, count, self._evicted)

    def match(self, prompt: Sequence[int], salt: str = "") -> Match:
        """The longest stored prefix of the prompt; at least its last token is left to compute. Release it after use."""
        pieces = self._pieces(prompt)
        digests = self._digests(pieces, salt)
        findable = max(len(prompt) - 1, 0) // self.block_tokens
        found = self._follow(pieces[:findable], digests[:findable], salt)
        self._uses += 1
        if found:
            found[-1].used = self._uses
            found[-1].pins += 1  # what comes before it has a child, and so stays too
        beyond = digests[len(found)] if len(found) < len(digests) else b""
        return Match(tuple(found), len(found) * self.block_tokens, beyond)

    def release(self, match: Match) -> None:
        """The match has been copied, or is no longer wanted."""
        if match.blocks:
            match.blocks[-1].pins -= 1
            self._shrink_to(self._budget)  # where the budget was lowered meanwhile

    def store(self, tokens: Sequence[int], salt: str = "") -> Store:
        """Give a place to every whole block of the tokens that has none, from the front, as far as the budget goes."""
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
                break  # the first would be another block with the same digest
            parent = self._add(CachedBlock(digest, parent, piece, self._serials))
            path.append(parent)
        if len(path) > known:
            path[-1].pins += 1
            self._note_leaf(path[-1])
        return Store(known * self.block_tokens, tuple(path[known:]), self.block_tokens)

    def fill(self, store: Store, payloads: Sequence[KVBlock]) -> None:
        """Take in what the engine copied. Raises ValueError for a payload of another size than was announced."""
        for block, payload in zip(store.blocks, payloads, strict=True):
            if payload.nbytes != self.block_bytes:
                raise ValueError(f"a block of the cache has {payload.nbytes} bytes, not {self.block_bytes}")
            block.payload = payload
        if store.blocks:
            store.blocks[-1].pins -= 1
            self._shrink_to(self._budget)

    def clear(self) -> None:
        """Forget everything, what is pinned too: its matches and stores are of no more use."""
        self._evicted += len(self._blocks)
        self._blocks.clear()
        self._leaves.clear()

    def resize(self, budget_bytes: int) -> None:
        """Change the budget; what is too much is evicted at once, pinned blocks when they are released."""
        self._budget = budget_bytes
        self._shrink_to(budget_bytes)

    def set_policy(self, policy: Policy) -> None:
        """Change the policy; what is stored stays."""
        self._policy = policy
        self._leaves = [(self._rank(leaf), leaf.serial, leaf) for leaf in self._blocks.values() if not leaf.children]
        heapq.heapify(self._leaves)

    def _pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The whole blocks of the tokens, four bytes a token."""
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
        """Evict until one more block fits, but nothing of the path that it is to be part of."""
        if isinstance(parent, str):
            return self._shrink_to(self._budget - self.block_bytes)
        parent.pins += 1
        try:
            return self._shrink_to(self._budget - self.block_bytes)
        finally:
            parent.pins -= 1

    def _shrink_to(self, size: int) -> bool:
        """Evict until at most `size` bytes are stored; False where what is pinned does not allow it."""
        pinned: list[CachedBlock] = []
        while len(self._blocks) * self.block_bytes > size and self._leaves:
            self._evict_one(pinned)
        for block in pinned:
            self._note_leaf(block)
        return len(self._blocks) * self.block_bytes <= size

    def _evict_one(self, pinned: list[CachedBlock]) -> None:
        """Take the first of the leaves and evict it, unless its entry is out of date or it is pinned.

        An entry is out of date when its block has gone, has got children, or was used since. A block gets a new entry
        when it becomes a leaf again, and a used one here.
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
        """What is evicted first has the least."""
        return block.used if self._policy == "lru" else block.serial
