"""The decision if the blocks of prompts are worth storing in the prefix cache.

Copying a block out of its slot costs the same if it is never found again. Traffic whose prompts share nothing would pay
for every copy. After 64 consecutive prompts without a new hit, the cache therefore stops storing blocks. It records
only the digest of each prompt's first uncached block. When that digest occurs again, storing resumes.
"""

from __future__ import annotations

from muai_lab.stack.prefix_cache import Match

PATIENCE = 64
"""Consecutive prompts without a new hit after which storing stops: one hit in this many is enough to continue."""

_REMEMBERED = 8192
"""Digests that are recorded, 32 bytes each: at most about this many prompts between two that share a prefix."""


class SharingWatch:
    """Counts prompts since the last one with a new hit, or with a hit that storing would have given."""

    def __init__(self) -> None:
        self._idle = 0
        self._left_at: dict[bytes, None] = {}  # digests of first uncached blocks, oldest first

    @property
    def worth_keeping(self) -> bool:
        """True if blocks of the present prompts have a fair chance to be found again."""
        return self._idle < PATIENCE

    def admitted(self, match: Match) -> None:
        """Take in a prompt that joins, with its match."""
        deepest = match.blocks[-1] if match.blocks else None
        # A block that is found once more shows that it is useful, not that new ones will be.
        found_more = deepest is not None and not deepest.found
        if deepest is not None:
            deepest.found = True
        again = match.beyond in self._left_at
        if match.beyond:
            self._left_at.pop(match.beyond, None)
            self._left_at[match.beyond] = None
            if len(self._left_at) > _REMEMBERED:
                del self._left_at[next(iter(self._left_at))]
        self._idle = 0 if found_more or again else self._idle + 1
