"""Ends the window of a run as soon as its headline is known precisely enough (`load.duration_s=auto`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np

from muai_lab.analysis.stopping import FIRST_LOOK_S, GROWTH, Look, Seen, enough, look_at
from muai_lab.load.ending import LEAD_NS, ObservedBatch, joined
from muai_lab.settings.lab import LoadSettings


class AutomaticEnd:
    """Analyses windows of growing length until one is long enough. Each analysis runs in a thread beside the load.

    open_loop: Selects the headline. clock: Monotonic nanoseconds. executor: For the analyses; None takes the event
    loop's.
    """

    def __init__(
        self,
        load: LoadSettings,
        *,
        open_loop: bool,
        clock: Callable[[], int] = time.monotonic_ns,
        executor: Executor | None = None,
    ) -> None:
        self._precision = load.precision
        self._longest_s = load.longest_s
        self._open_loop = open_loop
        self._clock = clock
        self._executor = executor
        self._batches: list[ObservedBatch] = []
        self._measure_ns: int | None = None
        self._next_s = min(FIRST_LOOK_S, load.longest_s)
        self._looking: asyncio.Future[Look] | None = None
        self._looks: list[Look] = []
        self._end_ns: int | None = None

    def begin(self, measure_ns: int) -> None:
        """See `Ending.begin`."""
        self._measure_ns = measure_ns

    def see(self, batch: ObservedBatch) -> None:
        """See `Ending.see`. Raises the error of the last analysis."""
        self._batches.append(batch)
        now_ns = self._clock()
        if self._looking is not None:
            if self._looking.done():
                self._judge(self._looking.result(), now_ns)
        elif self._measure_ns is not None and now_ns >= self._measure_ns + round(self._next_s * 1e9):
            self._look(self._measure_ns, now_ns)

    @property
    def end_ns(self) -> int | None:
        """See `Ending.end_ns`."""
        return self._end_ns

    def _look(self, measure_ns: int, now_ns: int) -> None:
        self._batches = [joined(self._batches)]
        seen = _since(self._batches[0], measure_ns)
        length_s = (now_ns - measure_ns) / 1e9
        self._looking = asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: look_at(seen, 0.0, length_s, open_loop=self._open_loop)
        )

    def _judge(self, look: Look, now_ns: int) -> None:
        self._looking = None
        self._looks.append(look)
        self._next_s = look.length_s * GROWTH
        if enough(self._looks, self._precision):
            self._end_ns = now_ns + LEAD_NS

    def facts(self) -> Mapping[str, Any]:
        """Return facts for the manifest: the settings, the analyses, and if one of them was enough."""
        return {
            "precision": self._precision,
            "longest_s": self._longest_s,
            "precise": self._end_ns is not None,
            "looks": [
                {"length_s": look.length_s, "half_width": look.estimate.half_width, "needs_s": look.estimate.needs_s}
                for look in self._looks
            ],
        }


def _since(batch: ObservedBatch, start_ns: int) -> Seen:
    """Times in seconds from the start of the window."""
    sent_s, due_s, over_s = (
        (each - start_ns).astype(np.float64) / 1e9 for each in (batch.sent_ns, batch.due_ns, batch.over_ns)
    )
    return Seen(sent_s, due_s, over_s, batch.ttft_s, batch.tpot_s, batch.e2e_s, batch.tokens)
