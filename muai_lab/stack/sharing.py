"""Whether prompts share anything that is not cached yet: what copying their blocks is worth at the moment.

Copying a block out of its slot costs the same whether it is ever found or not, and traffic whose prompts have nothing
in common pays for it without end. So it is watched whether kept blocks are found. After enough prompts in a row that
found nothing new, blocks are no longer kept, but it is remembered where each prompt left what is cached; the first
prompt that comes by such a place again would have found more, and everything is kept from then on.
"""

from __future__ import annotations

from muai_lab.stack.prefix_cache import Match

PATIENCE = 64
"""Prompts in a row that find nothing new until no more are kept: one reuse in so many is enough to go on."""

_REMEMBERED = 8192
"""Places that are remembered, 32 bytes each: about as many prompts may lie between two that share something."""


class SharingWatch:
    """Counts prompts since the last that found something for the first time, or would have."""

    def __init__(self) -> None:
        self._idle = 0
        self._left_at: dict[bytes, None] = {}  # the digests of first blocks that were not cached, oldest first

    @property
    def worth_keeping(self) -> bool:
        """Whether blocks of the prompts now under way have a fair chance to be found."""
        return self._idle < PATIENCE

    def admitted(self, match: Match) -> None:
        """A prompt joins with what was found of it."""
        deepest = match.blocks[-1] if match.blocks else None
        # Who finds a block again that was found before shows that it is of use, not that new ones will be.
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
