"""The phases of a run's load: warm-up, measurement, drain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["warmup", "measure", "drain"]

_NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Window:
    """The phases of a run. Monotonic nanoseconds; the `*_s` properties count from the start of the load.

    Requests due in `[measure_start_ns, measure_end_ns)` count. drain_end_ns: The last request ended or was aborted.
    """

    load_start_ns: int
    measure_start_ns: int
    measure_end_ns: int
    drain_end_ns: int

    @property
    def start_s(self) -> float:
        return (self.measure_start_ns - self.load_start_ns) / _NS_PER_S

    @property
    def end_s(self) -> float:
        return (self.measure_end_ns - self.load_start_ns) / _NS_PER_S

    @property
    def drain_end_s(self) -> float:
        return (self.drain_end_ns - self.load_start_ns) / _NS_PER_S

    @property
    def duration_s(self) -> float:
        """Length of the measurement window; 0 if the run never reached it."""
        return max(0.0, self.end_s - self.start_s)

    def phase(self, due_ns: int) -> Phase:
        """Return the phase in which a request is due."""
        if due_ns < self.measure_start_ns:
            return "warmup"
        return "measure" if due_ns < self.measure_end_ns else "drain"
