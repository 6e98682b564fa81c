"""The offset between the monotonic clock of another machine and the local one, measured by requests for its time.

Cristian's algorithm (F. Cristian, "Probabilistic clock synchronization", Distributed Computing 3, 1989), as in NTP: the
answer is assigned to the middle of the round trip, with an error of at most half of it. The shortest of several round
trips counts. Measurements before and after the load also give the drift between the clocks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

ROUND_TRIPS = 25


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """The remote clock minus the local one.

    Attributes:
        offset_ns: Nanoseconds, at `at_ns`.
        error_ns: Largest error of the offset.
        at_ns: Time of the measurement on the remote clock.
        drift: Gain of the remote clock per unit of time.
    """

    offset_ns: int = 0
    error_ns: int = 0
    at_ns: int = 0
    drift: float = 0.0

    def ours(self, theirs_ns: int) -> int:
        """Return a time of the remote clock on the local one."""
        return theirs_ns - self.offset_ns - round(self.drift * (theirs_ns - self.at_ns))

    def theirs(self, ours_ns: int) -> int:
        """Return a time of the local clock on the remote one, without the drift since the measurement."""
        return ours_ns + self.offset_ns

    def and_later(self, later: ClockOffset) -> ClockOffset:
        """Return this offset with the drift that a later measurement shows, and the larger error of both."""
        passed_ns = later.at_ns - self.at_ns
        drift = (later.offset_ns - self.offset_ns) / passed_ns if passed_ns > 0 else 0.0
        return ClockOffset(self.offset_ns, max(self.error_ns, later.error_ns), self.at_ns, drift)


SAME_CLOCK = ClockOffset()


async def measure_offset(ask: Callable[[], Awaitable[int]], clock: Callable[[], int]) -> ClockOffset:
    """Ask the remote side for its time repeatedly; the quickest answer counts. ask, clock: nanoseconds."""
    best: ClockOffset | None = None
    for _ in range(ROUND_TRIPS):
        before_ns = clock()
        theirs_ns = await ask()
        after_ns = clock()
        error_ns = (after_ns - before_ns + 1) // 2
        if best is None or error_ns < best.error_ns:
            best = ClockOffset(theirs_ns - (before_ns + after_ns) // 2, error_ns, theirs_ns)
    assert best is not None, "it was asked at least once"
    return best
