"""The shared time limit does to every task what `asyncio.timeout` does, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing

from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.load.precise_timer import LoopTimer
from muai_lab.load.time_limit import TimeLimit
from tests.unit.virtual_time import VirtualTimeLoop, run_virtual

LIMIT_S = 2.0
Ending = tuple[str, float]


@asynccontextmanager
async def shared(limit: TimeLimit) -> AsyncIterator[None]:
    with limit:
        yield


async def ending(body_s: float, bound: AbstractAsyncContextManager[object], loop: VirtualTimeLoop) -> Ending:
    """How a body of that length ends, and when."""
    try:
        async with bound:
            await asyncio.sleep(body_s)
    except TimeoutError:
        return "timeout", loop.time()
    except asyncio.CancelledError:
        return "cancelled", loop.time()
    return "done", loop.time()


def endings(bodies: list[tuple[float, float, float | None]], *, of_asyncio: bool) -> list[Ending]:
    """The ending of each body (start, length, when something else cancels it; seconds)."""

    async def main(loop: VirtualTimeLoop) -> list[Ending]:
        with closing(LoopTimer(loop.now_ns)) as timer:
            limit = TimeLimit(LIMIT_S, timer, loop.now_ns)

            async def one(start_s: float, body_s: float, cancel_s: float | None) -> Ending:
                await asyncio.sleep(start_s)
                bound = asyncio.timeout(LIMIT_S) if of_asyncio else shared(limit)
                task = asyncio.create_task(ending(body_s, bound, loop))
                if cancel_s is not None:
                    loop.call_later(cancel_s, task.cancel)
                return await task

            return await asyncio.gather(*(one(*body) for body in bodies))

    return [(how, round(at_s, 6)) for how, at_s in run_virtual(main)]


# Times of the bodies' own never fall on the moment at which their limit runs out: then either ending is right.
lengths = st.sampled_from([0.0, 0.5, 1.9, 2.1, 7.0])
bodies = st.tuples(st.sampled_from([0.0, 0.3, 1.0, 4.0]), lengths, st.none() | lengths)


@settings(max_examples=60, deadline=None)
@given(st.lists(bodies, min_size=1, max_size=8))
def test_every_body_ends_as_with_a_timeout_of_its_own(some: list[tuple[float, float, float | None]]) -> None:
    assert endings(some, of_asyncio=False) == endings(some, of_asyncio=True)


def test_a_task_may_use_the_limit_again_after_it_was_late() -> None:
    async def main(loop: VirtualTimeLoop) -> list[Ending]:
        with closing(LoopTimer(loop.now_ns)) as timer:
            limit = TimeLimit(LIMIT_S, timer, loop.now_ns)
            return [await ending(body_s, shared(limit), loop) for body_s in (3.0, 1.0, 3.0)]

    assert run_virtual(main) == [("timeout", 2.0), ("done", 3.0), ("timeout", 5.0)]


def test_an_error_of_the_body_passes_even_if_the_limit_ran_out_meanwhile() -> None:
    async def late(loop: VirtualTimeLoop) -> None:
        try:
            await asyncio.sleep(5.0)
        finally:
            raise ValueError("of the body")

    async def main(loop: VirtualTimeLoop) -> tuple[str, int]:
        with closing(LoopTimer(loop.now_ns)) as timer:
            try:
                with TimeLimit(LIMIT_S, timer, loop.now_ns):
                    await late(loop)
            except ValueError as error:
                task = asyncio.current_task()
                assert task is not None
                return str(error), task.cancelling()
        raise AssertionError("no error")

    assert run_virtual(main) == ("of the body", 0)


def test_one_timer_serves_all_bodies() -> None:
    armed: list[int] = []

    class CountingTimer(LoopTimer):
        def call_at(self, due_ns: int, callback: Callable[[], None]) -> None:
            armed.append(due_ns)
            super().call_at(due_ns, callback)

    async def main(loop: VirtualTimeLoop) -> None:
        with closing(CountingTimer(loop.now_ns)) as timer:
            limit = TimeLimit(LIMIT_S, timer, loop.now_ns)
            for _ in range(500):
                await ending(0.01, shared(limit), loop)

    run_virtual(main)
    assert len(armed) <= 4
