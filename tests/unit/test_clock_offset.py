"""Asking another machine for its time."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from muai_lab.load.clock_offset import ROUND_TRIPS, SAME_CLOCK, ClockOffset, measure_offset

MILLISECOND = 1_000_000
SECOND = 1_000_000_000


class TwoClocks:
    """Our clock, and theirs, which is ahead; messages take as long as they are told to."""

    def __init__(self, ahead_ns: int, trips_ns: list[tuple[int, int]]) -> None:
        self.now_ns = 0
        self.ahead_ns = ahead_ns
        self.trips_ns = iter(trips_ns)

    def clock(self) -> int:
        return self.now_ns

    async def ask(self) -> int:
        there_ns, back_ns = next(self.trips_ns)
        self.now_ns += there_ns
        theirs_ns = self.now_ns + self.ahead_ns
        self.now_ns += back_ns
        return theirs_ns


def measured(ahead_ns: int, trips_ns: list[tuple[int, int]]) -> ClockOffset:
    clocks = TwoClocks(ahead_ns, trips_ns)
    return asyncio.run(measure_offset(clocks.ask, clocks.clock))


def test_the_shortest_round_trip_counts() -> None:
    slow, quick = (9 * MILLISECOND, MILLISECOND), (MILLISECOND // 10, MILLISECOND // 10)

    offset = measured(5 * SECOND, [*[slow] * (ROUND_TRIPS - 1), quick])

    assert (offset.offset_ns, offset.error_ns) == (5 * SECOND, MILLISECOND // 10)


@given(
    st.integers(-(10**15), 10**15),
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)), min_size=ROUND_TRIPS, max_size=ROUND_TRIPS),
)
def test_the_offset_is_never_further_off_than_it_says(ahead_ns: int, trips_ns: list[tuple[int, int]]) -> None:
    offset = measured(ahead_ns, trips_ns)

    assert abs(offset.offset_ns - ahead_ns) <= offset.error_ns


def test_drift_is_taken_off_between_two_measurements() -> None:
    before = ClockOffset(offset_ns=SECOND, error_ns=10, at_ns=100 * SECOND)
    after = ClockOffset(offset_ns=SECOND + 3 * MILLISECOND, error_ns=20, at_ns=160 * SECOND)  # 50 parts in a million

    both = before.and_later(after)

    assert both.error_ns == 20
    assert both.ours(100 * SECOND) == 99 * SECOND
    assert both.ours(160 * SECOND) == 159 * SECOND - 3 * MILLISECOND
    assert both.ours(130 * SECOND) == 129 * SECOND - 3 * MILLISECOND // 2


def test_one_clock_stays_as_it_is() -> None:
    assert SAME_CLOCK.and_later(SAME_CLOCK) == SAME_CLOCK
    assert SAME_CLOCK.ours(123) == SAME_CLOCK.theirs(123) == 123
