"""What a scheduler asks of an engine in one step."""

from __future__ import annotations

from dataclasses import dataclass

from muai_lab.engines.base import PrefillChunk
from muai_lab.stack.prefix_reuse import CopyIn, CopyOut


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step: free the slots in `release`, then decode, and prefill what joins.

    copy_out: what the prefix cache keeps of slots, copied before any is released. copy_in: what it gives to those that
    join, copied before they prefill. Nothing to prefill or decode: sleep until `wait_until`, or until something is
    added (None).
    """

    release: tuple[int, ...] = ()
    prefill: tuple[PrefillChunk, ...] = ()
    decode: tuple[int, ...] = ()
    wait_until: float | None = None
    copy_out: tuple[CopyOut, ...] = ()
    copy_in: tuple[CopyIn, ...] = ()

    @property
    def empty(self) -> bool:
        """True if there is nothing for the engine to do."""
        return not self.prefill and not self.decode
