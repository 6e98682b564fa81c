"""Disturbances of the clocks during a load: suspended machines, stepped wall clocks, stalled event loops.

All times of a load are `CLOCK_MONOTONIC`, which cannot be set. It stops while a machine is suspended, so a request in
flight then looks faster than it was. `CLOCK_BOOTTIME` continues and reveals that. A step of the wall clock changes no
time measured here, but logs of other machines no longer line up with the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

# Shorter than any suspend, longer than the time between two readings and than the slew of NTP in a run.
_SUSPEND_LIMIT_NS = 100_000_000
_STEP_LIMIT_NS = 500_000_000
# A loop that stops for this long has certainly stamped times too late; below it, the send lag shows the delay.
_STALL_LIMIT_NS = 100_000_000


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The clocks at one moment, nanoseconds. boottime_ns: None if the system has no such clock."""

    monotonic_ns: int
    wall_ns: int
    boottime_ns: int | None


def read_clocks() -> ClockReading:
    """Read all clocks, one right after the other."""
    boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else None
    return ClockReading(time.monotonic_ns(), time.time_ns(), boottime)


class ClockWatch:
    """Measures the lateness of a task's wake-ups, and compares the clocks between its creation and `notes`."""

    def __init__(self, clock: Callable[[], int], read: Callable[[], ClockReading] = read_clocks) -> None:
        """clock: the load's, in nanoseconds."""
        self._clock = clock
        self._read = read
        self._begin = read()
        self._stall_ns = 0

    @property
    def longest_stall_s(self) -> float:
        """The longest time for which the event loop did not run a task that was due."""
        return self._stall_ns / 1e9

    def woke(self, due_ns: int) -> None:
        """Record that a task that was due at `due_ns` runs now."""
        self._stall_ns = max(self._stall_ns, self._clock() - due_ns)

    def notes(self) -> tuple[str, ...]:
        """Return facts about the clocks that a reader of the results must know."""
        begin, end = self._begin, self._read()
        passed_ns = end.monotonic_ns - begin.monotonic_ns
        suspended_ns = 0
        if begin.boottime_ns is not None and end.boottime_ns is not None:
            suspended_ns = end.boottime_ns - begin.boottime_ns - passed_ns
        stepped_ns = end.wall_ns - begin.wall_ns - passed_ns - suspended_ns
        notes = []
        if suspended_ns > _SUSPEND_LIMIT_NS:
            notes.append(
                f"the machine was suspended for {suspended_ns / 1e9:.1f} s during the load: requests in flight then "
                "are measured too short; repeat the run"
            )
        if abs(stepped_ns) > _STEP_LIMIT_NS:
            notes.append(
                f"the wall clock was set by {stepped_ns / 1e9:+.1f} s during the load: no time measured here depends "
                "on it, but logs of other machines no longer line up"
            )
        if self._stall_ns > _STALL_LIMIT_NS:
            notes.append(
                f"the load generator stalled for {self._stall_ns / 1e6:.0f} ms: bytes of that time are stamped "
                "too late; give it a core of its own"
            )
        return tuple(notes)
