"""Both timers: never early, in order, silent once closed."""

from __future__ import annotations

import asyncio
import time

import pytest

from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.precise_timer import KernelTimer, LoopTimer, PreciseTimer, precise_timer
from tests.unit.virtual_time import VirtualTimeLoop, run_virtual

MS = 1_000_000
clock = time.monotonic_ns


@pytest.fixture(params=["kernel", "loop"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(kind: str) -> PreciseTimer:
    timer = precise_timer(clock) if kind == "kernel" else LoopTimer(clock)
    if kind == "kernel" and not isinstance(timer, KernelTimer):
        pytest.skip("this system has no timerfd")
    return timer


def test_calls_come_in_order_and_none_before_its_time(kind: str) -> None:
    async def main() -> list[tuple[str, int]]:
        timer, start = made(kind), clock()
        called: list[tuple[str, int]] = []
        for name, after_ms in (("last", 9.0), ("first", 2.0), ("middle", 5.5)):
            due = start + int(after_ms * MS)
            timer.call_at(due, lambda name=name, due=due: called.append((name, clock() - due)))  # type: ignore[misc]
        await timer.sleep_until(start - MS)  # past: without yielding
        assert called == []
        await timer.sleep_until(start + 10 * MS)
        while len(called) < 3:
            await timer.sleep_until(clock() + MS)
        timer.close()
        return called

    called = run_on_fast_loop(main())

    if kind == "kernel":  # the loop's own timers keep no order among those that were past when they were made
        assert [name for name, _ in called] == ["first", "middle", "last"]
    assert all(late >= 0 for _, late in called)


def test_a_callback_may_ask_for_the_next_one(kind: str) -> None:
    async def main() -> int:
        timer, calls = made(kind), 0
        done = asyncio.get_running_loop().create_future()

        def again() -> None:
            nonlocal calls
            calls += 1
            if calls == 5:
                done.set_result(None)
            else:
                timer.call_at(clock() + MS // 2, again)

        timer.call_at(clock(), again)
        await done
        timer.close()
        return calls

    assert run_on_fast_loop(main()) == 5


def test_nothing_is_called_after_closing(kind: str) -> None:
    async def main() -> list[str]:
        timer, called = made(kind), []
        timer.call_at(clock() + MS, lambda: called.append("late"))
        timer.close()
        timer.close()
        other = LoopTimer(clock)
        await other.sleep_until(clock() + 3 * MS)
        return called

    assert run_on_fast_loop(main()) == []


def test_a_wait_that_was_cancelled_does_not_disturb_the_others(kind: str) -> None:
    async def main() -> bool:
        timer, start = made(kind), clock()
        gone = asyncio.create_task(timer.sleep_until(start + MS))
        stays = asyncio.create_task(timer.sleep_until(start + 2 * MS))
        await asyncio.sleep(0)
        gone.cancel()
        await stays
        timer.close()
        return gone.cancelled()

    assert run_on_fast_loop(main())


def test_a_clock_of_ones_own_gets_the_loops_timer() -> None:
    async def main(loop: VirtualTimeLoop) -> int:
        timer = precise_timer(loop.now_ns)
        assert isinstance(timer, LoopTimer)
        await timer.sleep_until(7 * MS)
        return loop.now_ns()

    assert run_virtual(main) == 7 * MS
