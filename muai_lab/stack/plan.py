"""One engine step, as planned by the scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from muai_lab.engines.base import PrefillChunk
from muai_lab.stack.prefix_reuse import CopyIn, CopyOut


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step: release slots, then decode, and prefill the prompts that join.

    copy_out: blocks of slots that the prefix cache keeps, copied before any slot is released. copy_in: cached blocks
    for sequences that join, copied before they prefill. If there is nothing to prefill or decode, the driver sleeps
    until `wait_until`, or until a request is added (None).
    """

    release: tuple[int, ...] = ()
    prefill: tuple[PrefillChunk, ...] = ()
    decode: tuple[int, ...] = ()
    wait_until: float | None = None
    copy_out: tuple[CopyOut, ...] = ()
    copy_in: tuple[CopyIn, ...] = ()

    @property
    def empty(self) -> bool:
        """True if there is nothing to compute."""
        return not self.prefill and not self.decode
