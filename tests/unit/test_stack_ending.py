"""How a stack ends: drained, closed, with its event loop, or because a step of its engine does not return."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from muai_lab.errors import (
    EngineError,
    Overloaded,
    RequestCancelled,
    RequestError,
    RequestTimeout,
)
from muai_lab.stack.events import Failed, Lost, Rejected
from tests.unit.counting_engine import DEADLINE_S, CountingEngine
from tests.unit.stack_on_counting import (
    FOREVER,
    MakeStack,
    Recorder,
    ask,
    closed_afterwards,
    deltas_of,
    open_stack,
    text_of,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def make() -> AsyncIterator[MakeStack]:
    async with closed_afterwards() as make:
        yield make


async def test_a_drain_refuses_new_requests_and_waits_for_the_others(make: MakeStack) -> None:
    engine = CountingEngine(stepwise=True)
    stack = make(engine)
    generation = stack.submit(ask())
    drains = [asyncio.create_task(stack.drain(DEADLINE_S)) for _ in range(2)]
    await asyncio.sleep(0)

    with pytest.raises(Overloaded, match="shutting down") as caught:
        stack.submit(ask("b"))

    assert caught.value.draining
    assert not any(drain.done() for drain in drains)
    engine.allow.release(FOREVER)
    await asyncio.gather(*drains)
    assert await text_of(generation) == "11 12 13 "


async def test_a_drain_cancels_what_is_left_when_its_time_is_over(make: MakeStack) -> None:
    engine = CountingEngine(slots=1, stepwise=True)
    stack = make(engine)
    generations = [stack.submit(ask(str(number))) for number in range(3)]

    await stack.drain(0.0)

    for generation in generations:
        with pytest.raises(RequestCancelled, match="shutting down"):
            await deltas_of(generation)


async def test_a_drain_without_work_is_over_at_once(make: MakeStack) -> None:
    await make(CountingEngine()).drain(0.0)


async def test_closing_cancels_ends_the_thread_and_frees_the_engine() -> None:
    engine = CountingEngine(context=2 * FOREVER, stepwise=True)
    before = threading.active_count()
    stack = open_stack(engine)
    generation = stack.submit(ask(max_tokens=FOREVER - 1))
    engine.wait_until_entered()

    closing = asyncio.create_task(stack.close())
    await asyncio.sleep(0)
    engine.allow.release(FOREVER)
    await closing

    with pytest.raises(RequestCancelled):
        await deltas_of(generation)
    assert engine.closed == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "engine-counting"]
    assert threading.active_count() <= before + 1  # asyncio's own worker thread, in which the stack waited
    with pytest.raises(Overloaded):
        stack.submit(ask("b"))
    await stack.close()


def test_a_stack_outlives_an_event_loop_that_ended_in_the_middle() -> None:
    engine = CountingEngine(slots=1, stepwise=True)
    stack = open_stack(engine)

    async def begin() -> None:
        for number in range(3):
            stack.submit(ask(str(number), max_tokens=50))
        engine.wait_until_entered()

    async def go_on() -> str:
        engine.allow.release(FOREVER)
        text = await text_of(stack.submit(ask("new")))
        assert (stack.counts().waiting, stack.counts().running) == (0, 0)
        await stack.close()
        return text

    asyncio.run(begin())

    assert asyncio.run(go_on()) == "11 12 13 "


# An engine whose step does not return


@pytest.fixture
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muai_lab.stack.hang_watch.WATCH_S", 0.01)


@pytest.mark.usefixtures("quick_watch")
async def test_a_request_ends_at_its_deadline_though_the_step_hangs(make: MakeStack) -> None:
    engine = CountingEngine(stepwise=True)
    stack = make(engine)

    with pytest.raises(RequestTimeout, match="the engine hangs in a step"):
        await deltas_of(stack.submit(ask(timeout_s=0.05)))

    assert stack.healthy()  # the step may yet return: then all goes on
    engine.allow.release(FOREVER)
    assert await text_of(stack.submit(ask("b"))) == "11 12 13 "


@pytest.mark.usefixtures("quick_watch")
async def test_an_engine_whose_step_does_not_return_is_given_up(make: MakeStack) -> None:
    engine, watcher = CountingEngine(stepwise=True), Recorder()
    stack = make(engine, step_timeout_s=0.05, observers=[watcher])

    with pytest.raises(RequestError, match="a step has not returned for 0 s"):
        await deltas_of(stack.submit(ask()))

    assert not stack.healthy()
    with pytest.raises(EngineError, match="has not returned"):
        stack.submit(ask("b"))
    assert [type(event) for event in watcher.events][-3:] == [Lost, Failed, Rejected]


@pytest.mark.usefixtures("quick_watch")
async def test_nothing_is_heard_of_an_engine_that_was_given_up(make: MakeStack) -> None:
    engine = CountingEngine(stepwise=True)
    stack = make(engine, step_timeout_s=0.05)
    with pytest.raises(RequestError):
        await deltas_of(stack.submit(ask()))

    engine.allow.release(FOREVER)
    stack._failover.serving.driver._thread.join(DEADLINE_S)

    assert engine.closed == 1
    assert stack.counts().running == stack.counts().waiting == 0
