"""How far another machine's monotonic clock is from ours, by asking it the time.

Cristian's algorithm (F. Cristian, "Probabilistic clock synchronization", Distributed Computing 3, 1989; NTP does the
same): the answer is taken for the middle of the round trip, which is wrong by at most half of it; of several round
trips the shortest counts. Asked before and after the load, it also tells how the two clocks drift apart meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

ROUND_TRIPS = 25


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """Theirs minus ours, nanoseconds, at `at_ns` of their clock; error_ns: at most so far off.

    drift: by how much theirs gains on ours, per unit of time.
    """

    offset_ns: int = 0
    error_ns: int = 0
    at_ns: int = 0
    drift: float = 0.0

    def ours(self, theirs_ns: int) -> int:
        """A time of theirs on our clock."""
        return theirs_ns - self.offset_ns - round(self.drift * (theirs_ns - self.at_ns))

    def theirs(self, ours_ns: int) -> int:
        """A time of ours on their clock, without regard to the drift since the offset was measured."""
        return ours_ns + self.offset_ns

    def and_later(self, later: ClockOffset) -> ClockOffset:
        """This offset with the drift that a later measurement shows, the error being the larger of both."""
        passed_ns = later.at_ns - self.at_ns
        drift = (later.offset_ns - self.offset_ns) / passed_ns if passed_ns > 0 else 0.0
        return ClockOffset(self.offset_ns, max(self.error_ns, later.error_ns), self.at_ns, drift)


SAME_CLOCK = ClockOffset()


async def measure_offset(ask: Callable[[], Awaitable[int]], clock: Callable[[], int]) -> ClockOffset:
    """Ask the other side for its time again and again; the quickest answer counts. ask, clock: nanoseconds."""
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
