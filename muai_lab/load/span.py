"""The times of one load on its clock."""

from __future__ import annotations

import asyncio

from muai_lab.load.plan import LoadPlan
from muai_lab.window import Phase


class LoadSpan:
    """Start, measurement window and end of a load; monotonic nanoseconds.

    The end can move to the front while the load runs.

    Attributes:
        start_ns: First time at which a request is due.
        measure_ns: Start of the measurement window.
        end_ns: End of the measurement window; from then on no request is due.
        shortened: Set once the end has moved.
    """

    def __init__(self, start_ns: int, plan: LoadPlan) -> None:
        self.start_ns = start_ns
        self.measure_ns = start_ns + round(plan.warmup_s * 1e9)
        self.end_ns = self.measure_ns + round(plan.duration_s * 1e9)
        self.shortened = asyncio.Event()

    def end_at(self, end_ns: int) -> None:
        """End the window at this time, unless it ends before."""
        if end_ns < self.end_ns:
            self.end_ns = end_ns
            self.shortened.set()

    def phase(self, at_ns: int) -> Phase:
        """Return the phase of a time."""
        return "warmup" if at_ns < self.measure_ns else "measure" if at_ns < self.end_ns else "drain"
