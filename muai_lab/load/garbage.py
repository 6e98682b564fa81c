"""Python's cyclic garbage collector, mostly kept out of a measurement, and its pauses."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal


class GarbagePauses:
    """The pauses of this process by the collector.

    total_s, longest_s: of all collections so far.
    """

    def __init__(self) -> None:
        self.total_s = 0.0
        self.longest_s = 0.0
        self._began_s = 0.0

    def collecting(self, phase: Literal["start", "stop"], info: dict[str, Any]) -> None:
        """Record the start or the end of a collection; a function for `gc.callbacks`."""
        if phase == "start":
            self._began_s = time.perf_counter()
            return
        pause_s = time.perf_counter() - self._began_s
        self.total_s += pause_s
        self.longest_s = max(self.longest_s, pause_s)


@contextmanager
def rare_garbage_collection() -> Iterator[GarbagePauses]:
    """Collect all garbage now, and rarely within the context.

    A full collection traverses every live object: 70 to 100 ms on entry, so enter before a start time is fixed. Live
    objects are set aside. Young generations are collected less often, and a full collection does not occur in a run of
    ordinary length.
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
