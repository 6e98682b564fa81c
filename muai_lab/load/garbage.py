"""Python's cyclic garbage collector, kept out of a measurement and watched in it."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal


class GarbagePauses:
    """How long the collector held this process up.

    total_s, longest_s: of all collections so far.
    """

    def __init__(self) -> None:
        self.total_s = 0.0
        self.longest_s = 0.0
        self._began_s = 0.0

    def collecting(self, phase: Literal["start", "stop"], info: dict[str, Any]) -> None:
        """Take in one end of a collection, as `gc.callbacks` gives it."""
        if phase == "start":
            self._began_s = time.perf_counter()
            return
        pause_s = time.perf_counter() - self._began_s
        self.total_s += pause_s
        self.longest_s = max(self.longest_s, pause_s)


@contextmanager
def rare_garbage_collection() -> Iterator[GarbagePauses]:
    """Collect all garbage now, and little of it within.

    A full collection walks every live object: 70 to 100 ms on entry, so enter before a start time is fixed.
    What lives already is set aside; young generations are still collected, only less often, and a full collection does
    not come up in a run of ordinary length.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)
    pauses = GarbagePauses()
    gc.callbacks.append(pauses.collecting)
    try:
        yield pauses
    finally:
        gc.callbacks.remove(pauses.collecting)
        gc.set_threshold(*thresholds)
        gc.unfreeze()
