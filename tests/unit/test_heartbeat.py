"""The beat of the loop: which lateness it notes, and to what it puts it down."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from muai_lab.load.heartbeat import Heartbeat, RunQueueClock, waiting_clock

MS = 1_000_000


class Machine:
    """A thread on a machine of one's own making: its timers fire when it gets to run.

    reads_ms: how long it reads what was ready before a timer that a callback sets to a time in the past.
    """

    def __init__(self) -> None:
        self.now = self.ran = self.waited = 0
        self.timers: list[tuple[int, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.reads_ms = 0.0

    def call_at(self, due_ns: int, callback: Callable[[], None]) -> None:
        if due_ns <= self.now:
            self.now += round(self.reads_ms * MS)
        heapq.heappush(self.timers, (due_ns, next(self.order), callback))

    async def sleep_until(self, due_ns: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def idle(self, ms: float) -> None:
        """Time passes with nothing to do: timers fire when they are due."""
        until = self.now + round(ms * MS)
        while self.timers and self.timers[0][0] <= until:
            due, _, callback = heapq.heappop(self.timers)
            self.now = max(self.now, due)
            callback()
        self.now = until

    def work(self, ms: float) -> None:
        self.now += round(ms * MS)
        self.ran += round(ms * MS)
        self.idle(0)

    def starve(self, ms: float) -> None:
        self.now += round(ms * MS)
        self.waited += round(ms * MS)
        self.idle(0)


def beating(machine: Machine, *, waits: bool = True) -> Heartbeat:
    wait_clock = (lambda: machine.waited) if waits else None
    beat = Heartbeat(machine, lambda: machine.now, lambda: machine.ran, wait_clock)
    beat.begin(10 * MS)
    return beat


def test_an_idle_loop_is_never_late() -> None:
    machine = Machine()
    beat = beating(machine)
    machine.idle(111.0)
    beat.end()

    timing = beat.timing()
    assert timing.lateness_s.tolist() == [0.0] * 21
    assert (timing.cpu_share, timing.wait_share, timing.waited_share) == (0.0, 0.0, None)


def test_a_stall_counts_with_its_length_for_each_beat_that_it_holds_up() -> None:
    machine = Machine()
    beat = beating(machine)
    machine.idle(12.0)
    machine.starve(17.0)  # from 12 to 29: the beats of 15, 20 and 25 come then
    machine.idle(20.0)
    beat.end()

    timing = beat.timing()
    assert np.round(timing.lateness_s * 1e3, 3).tolist() == [0, 14, 9, 9, 0, 0, 0, 0]
    assert timing.waited_share == 1.0


def test_an_interruption_between_the_reads_after_a_stall_counts_too() -> None:
    machine = Machine()
    beat = beating(machine)
    machine.idle(12.0)
    machine.reads_ms = 50.0  # it stops again while it reads what the stall has left lying
    machine.starve(17.0)
    beat.end()

    lateness_ms = np.round(beat.timing().lateness_s * 1e3, 3)
    assert lateness_ms[:3].tolist() == [0, 14, 59]
    assert set(lateness_ms[2:]) == {59}


def test_lateness_is_put_down_to_work_and_to_waiting() -> None:
    machine = Machine()
    beat = beating(machine)
    machine.idle(10.0)
    machine.work(10.0)
    machine.starve(20.0)
    beat.end()

    timing = beat.timing()
    assert timing.cpu_share == pytest.approx(1 / 3)
    assert timing.wait_share == pytest.approx(2 / 3)
    assert timing.waited_share is not None
    assert 0.5 < timing.waited_share < 1.0


def test_a_stall_that_lasts_to_the_end_counts() -> None:
    machine = Machine()
    beat = beating(machine)
    machine.idle(11.0)
    machine.now += 30 * MS  # the loop does not turn any more
    beat.end()
    beat.end()

    assert np.round(beat.timing().lateness_s * 1e3).tolist() == [0, 26, 26, 26, 26, 26, 26]


def test_what_comes_before_the_window_and_after_it_does_not_count() -> None:
    machine = Machine()
    beat = beating(machine)
    machine.starve(9.0)
    machine.idle(6.0)
    beat.end()
    machine.starve(50.0)

    timing = beat.timing()
    assert timing.lateness_s.tolist() == [0.0, 0.0]
    assert timing.wait_share == 0.0


def test_a_load_that_ends_in_its_warmup_has_no_timing() -> None:
    machine = Machine()
    beat = beating(machine)
    machine.idle(5.0)
    beat.end()

    timing = beat.timing()
    assert (len(timing.lateness_s), timing.cpu_share) == (0, None)


def test_a_system_without_scheduling_statistics_only_lacks_the_reason() -> None:
    machine = Machine()
    beat = beating(machine, waits=False)
    machine.idle(11.0)
    machine.starve(29.0)
    beat.end()

    timing = beat.timing()
    assert timing.lateness_s.max() == pytest.approx(0.025)
    assert (timing.wait_share, timing.waited_share) == (None, None)


def test_the_waiting_time_is_the_second_field_of_schedstat(tmp_path: Path) -> None:
    stat = tmp_path / "schedstat"
    stat.write_text("425066 126208 2\n")

    clock = RunQueueClock(str(stat))
    assert clock() == 126208
    stat.write_text("500000 226208 3\n")
    assert clock() == 226208
    clock.close()


@pytest.mark.parametrize("content", ["0 0 0\n", None])
def test_a_kernel_that_does_not_count_is_told_apart(tmp_path: Path, content: str | None) -> None:
    stat = tmp_path / "schedstat"
    if content is not None:
        stat.write_text(content)

    with pytest.raises(OSError, match=r"No such file|no scheduling statistics"):
        RunQueueClock(str(stat))


def test_the_waiting_clock_is_one_that_counts_or_none() -> None:
    with waiting_clock() as clock:
        assert clock is None or clock() <= clock()
