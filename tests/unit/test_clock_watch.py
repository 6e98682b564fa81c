"""What is said when clocks do not go evenly."""

from __future__ import annotations

from muai_lab.load.clock_watch import ClockReading, ClockWatch

SECOND = 1_000_000_000
START = ClockReading(monotonic_ns=10 * SECOND, wall_ns=1_000 * SECOND, boottime_ns=15 * SECOND)


def after(
    passed_s: float, *, suspended_s: float = 0.0, stepped_s: float = 0.0, boottime: bool = True
) -> tuple[str, ...]:
    """The notes of a load that took `passed_s` on the monotonic clock."""
    passed, suspended, stepped = (round(value * SECOND) for value in (passed_s, suspended_s, stepped_s))
    end = ClockReading(
        START.monotonic_ns + passed,
        START.wall_ns + passed + suspended + stepped,
        15 * SECOND + passed + suspended if boottime else None,
    )
    readings = iter([START, end])
    return ClockWatch(lambda: 0, lambda: next(readings)).notes()


def test_clocks_that_go_evenly_are_not_worth_a_word() -> None:
    assert after(60.0) == ()
    assert after(3600.0, stepped_s=0.2) == ()  # slewed by NTP


def test_a_suspended_machine_is_told_and_is_no_step_of_the_wall_clock() -> None:
    (note,) = after(60.0, suspended_s=900.0)

    assert "the machine was suspended for 900.0 s" in note
    assert "repeat the run" in note


def test_a_wall_clock_that_was_set_is_told_with_its_direction() -> None:
    (note,) = after(60.0, stepped_s=-3600.0)

    assert "the wall clock was set by -3600.0 s" in note


def test_both_at_once_are_told_apart() -> None:
    suspended, stepped = after(60.0, suspended_s=30.0, stepped_s=5.0)

    assert "suspended for 30.0 s" in suspended
    assert "set by +5.0 s" in stepped


def test_without_a_clock_that_goes_on_in_suspend_only_the_wall_clock_tells() -> None:
    (note,) = after(60.0, suspended_s=30.0, boottime=False)

    assert "the wall clock was set by +30.0 s" in note


def test_the_longest_stall_of_the_loop_is_kept_and_a_long_one_is_told() -> None:
    times = iter([1_000_000, 350_000_000, 500_002_000])
    watch = ClockWatch(lambda: next(times), lambda: START)
    for due_ns in (0, 200_000_000, 500_000_000):
        watch.woke(due_ns)

    assert watch.longest_stall_s == 0.15
    assert watch.notes() == (
        "the load generator stalled for 150 ms: bytes of that time are stamped too late; give it a core of its own",
    )
