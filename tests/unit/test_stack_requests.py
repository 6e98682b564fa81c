"""The stack as its callers see it: what is refused, how requests end. On an engine that counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from muai_lab.engines.base import Sampling
from muai_lab.errors import (
    EngineError,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    RequestError,
    RequestTimeout,
    SettingsError,
)
from muai_lab.stack.events import Failed, Finished, Rejected
from muai_lab.stack.request import Delta, GenerationRequest
from muai_lab.stack.text import StopStrings
from tests.unit.counting_engine import CountingEngine
from tests.unit.stack_on_counting import (
    FOREVER,
    MakeStack,
    Recorder,
    ask,
    closed_afterwards,
    deltas_of,
    text_of,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def make() -> AsyncIterator[MakeStack]:
    async with closed_afterwards() as make:
        yield make


# What comes out


async def test_deltas_add_up_to_the_output(make: MakeStack) -> None:
    deltas = await deltas_of(make(CountingEngine()).submit(ask()))

    assert "".join(delta.text for delta in deltas) == "11 12 13 "
    assert sum(delta.tokens for delta in deltas) == deltas[-1].output_tokens == 3
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]


async def test_a_consumer_that_lags_gets_deltas_merged(make: MakeStack) -> None:
    recorder = Recorder()
    generation = make(CountingEngine(), observers=[recorder]).submit(ask())
    await until(lambda: any(isinstance(event, Finished) for event in recorder.events) and generation.ended)

    assert await deltas_of(generation) == [Delta("11 12 13 ", 3, 3, "length")]


async def test_a_request_that_does_not_stream_gets_one_delta(make: MakeStack) -> None:
    assert await deltas_of(make(CountingEngine()).submit(ask(stream=False))) == [Delta("11 12 13 ", 3, 3, "length")]


async def test_after_the_end_nothing_more_comes(make: MakeStack) -> None:
    generation = make(CountingEngine()).submit(ask())
    await deltas_of(generation)

    with pytest.raises(StopAsyncIteration):
        await anext(generation)


async def test_the_end_token_ends_the_output(make: MakeStack) -> None:
    last = (await deltas_of(make(CountingEngine(end=12)).submit(ask(max_tokens=9))))[-1]

    assert (last.finish_reason, last.output_tokens) == ("stop", 2)


async def test_ignore_eos_goes_on(make: MakeStack) -> None:
    last = (await deltas_of(make(CountingEngine(end=12)).submit(ask(max_tokens=9, ignore_eos=True))))[-1]

    assert (last.finish_reason, last.output_tokens) == ("length", 9)


async def test_a_stop_string_over_several_tokens_ends_the_output_and_frees_the_slot(make: MakeStack) -> None:
    stack = make(CountingEngine())

    deltas = await deltas_of(stack.submit(ask(max_tokens=50, stop=StopStrings(["2 13 1"]))))

    assert "".join(delta.text for delta in deltas) == "11 1"
    assert (deltas[-1].finish_reason, deltas[-1].output_tokens) == ("stop", 4)
    await until(lambda: stack.counts().running == 0)


async def test_a_stop_string_that_comes_with_the_last_token_is_a_stop(make: MakeStack) -> None:
    deltas = await deltas_of(make(CountingEngine()).submit(ask(max_tokens=3, stop=StopStrings(["13"]))))

    assert (deltas[-1].finish_reason, deltas[-1].output_tokens) == ("stop", 3)


async def test_many_more_requests_than_slots_all_get_their_own_output(make: MakeStack) -> None:
    stack = make(CountingEngine(slots=4))
    requests = [ask(str(number), last=number, max_tokens=1 + number % 7) for number in range(64)]

    texts = await asyncio.gather(*(text_of(stack.submit(request)) for request in requests))

    for number, text in enumerate(texts):
        assert text == "".join(f"{number + 1 + at} " for at in range(1 + number % 7))
    assert (stack.counts().waiting, stack.counts().running, stack.counts().slots) == (0, 0, 4)


# What is refused


@pytest.mark.parametrize(
    ("request_", "param", "reason"),
    [
        (GenerationRequest("a", [], 1), "prompt", "the prompt is empty"),
        (GenerationRequest("a", [1, -1], 1), "prompt", r"must lie in 0\.\.99"),
        (GenerationRequest("a", [100], 1), "prompt", r"must lie in 0\.\.99"),
        (GenerationRequest("a", [1] * 64, 1), "prompt", "the prompt has 64 tokens, and the model's context is 64"),
        (GenerationRequest("a", [1] * 60, 5), "max_tokens", "60 in the prompt and 5 of output"),
        (ask(max_tokens=0), "max_tokens", "must be at least 1 and at most 2147483647, not 0"),
        (ask(max_tokens=10**5000), "max_tokens", "not an integer of more than 40 digits"),
        (ask(timeout_s=0.0), "timeout_s", "must be above 0"),
        (ask(timeout_s=float("nan")), "timeout_s", "must be above 0"),
        (ask(timeout_s=10**400), "timeout_s", "must be above 0"),
        (ask(priority=10**400), "priority", "at least -1000 and at most 1000"),
        (ask(cache_salt="\ud800"), "cache_salt", "no valid Unicode"),
        (ask(sampling=Sampling(temperature=-0.1)), "temperature", "at least 0 and at most 2"),
        (ask(sampling=Sampling(temperature=1e300)), "temperature", "at least 0 and at most 2"),
        (ask(sampling=Sampling(temperature=float("nan"))), "temperature", "at least 0 and at most 2"),
        (ask(sampling=Sampling(temperature=float("inf"))), "temperature", "at least 0 and at most 2"),
        (ask(sampling=Sampling(top_p=0.0)), "top_p", "above 0 and at most 1"),
        (ask(sampling=Sampling(top_p=1.1)), "top_p", "above 0 and at most 1"),
        (ask(sampling=Sampling(top_k=-1)), "top_k", "0 .all tokens. or more"),
    ],
)
async def test_a_request_that_can_never_be_served_is_refused(
    request_: GenerationRequest, param: str, reason: str, make: MakeStack
) -> None:
    recorder = Recorder()
    stack = make(CountingEngine(), observers=[recorder])

    with pytest.raises(InvalidRequest, match=reason) as caught:
        stack.submit(request_)

    assert caught.value.param == param
    await until(lambda: [type(event) for event in recorder.events] == [Rejected])
    assert await text_of(stack.submit(ask("next"))) == "11 12 13 "


async def test_the_longest_prompt_and_output_that_fit_are_served(make: MakeStack) -> None:
    last = (await deltas_of(make(CountingEngine(context=64)).submit(GenerationRequest("a", [1] * 60, 4))))[-1]

    assert last.output_tokens == 4


async def test_an_id_in_use_is_refused_and_free_again_afterwards(make: MakeStack) -> None:
    stack = make(CountingEngine())
    first = stack.submit(ask("a"))

    with pytest.raises(InvalidRequest, match="'a' is already in use"):
        stack.submit(ask("a"))

    await deltas_of(first)
    assert await text_of(stack.submit(ask("a"))) == "11 12 13 "


async def test_a_full_queue_refuses_and_says_when_to_come_back(make: MakeStack) -> None:
    engine = CountingEngine(slots=2, stepwise=True)
    stack = make(engine, queue_capacity=3)
    # A burst: two that run, three that wait, though the engine's thread may not have looked at any of them yet.
    admitted = [stack.submit(ask(str(number))) for number in range(5)]

    with pytest.raises(Overloaded, match="the queue is full") as caught:
        stack.submit(ask("one too many"))

    assert caught.value.retry_after_s > 0
    assert not caught.value.draining
    engine.allow.release(FOREVER)
    assert await asyncio.gather(*map(text_of, admitted)) == ["11 12 13 "] * 5
    assert await text_of(stack.submit(ask("later"))) == "11 12 13 "


# How requests end early


async def test_cancelling_frees_the_slot_for_the_next(make: MakeStack) -> None:
    engine = CountingEngine(slots=1, stepwise=True)
    stack = make(engine)
    running, waiting = stack.submit(ask("running", max_tokens=50)), stack.submit(ask("waiting"))
    engine.allow.release()
    await anext(running)

    running.cancel()
    running.cancel()
    engine.allow.release(FOREVER)

    with pytest.raises(RequestCancelled):
        await anext(running)
    assert await text_of(waiting) == "11 12 13 "
    await until(lambda: stack.counts().running == 0)


async def test_a_request_may_be_cancelled_while_it_waits(make: MakeStack) -> None:
    engine = CountingEngine(slots=1, stepwise=True)
    stack = make(engine)
    running, waiting = stack.submit(ask("running")), stack.submit(ask("waiting"))
    engine.wait_until_entered()

    waiting.cancel()
    engine.allow.release(FOREVER)

    with pytest.raises(RequestCancelled):
        await deltas_of(waiting)
    assert await text_of(running) == "11 12 13 "
    await until(lambda: (stack.counts().waiting, stack.counts().running) == (0, 0))
    assert [name for name, _ in engine.calls].count("prefill") == 1


async def test_cancelling_what_has_ended_changes_nothing(make: MakeStack) -> None:
    recorder = Recorder()
    stack = make(CountingEngine(), observers=[recorder])
    generation = stack.submit(ask())
    await deltas_of(generation)

    generation.cancel()
    await text_of(stack.submit(ask("b")))

    assert not [event for event in recorder.events if isinstance(event, Failed)]


async def test_a_deadline_ends_a_request(make: MakeStack) -> None:
    stack = make(CountingEngine(), batcher={"min_batch_size": 4, "batch_timeout_ms": 10**9})

    with pytest.raises(RequestTimeout, match="deadline"):
        await deltas_of(stack.submit(ask(timeout_s=0.01)))


async def test_output_that_cannot_be_decoded_ends_only_its_own_request(
    make: MakeStack, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    endless = 10**9  # the engine must not be done before the loop, which may be slow, has seen the token
    stack = make(CountingEngine(context=2 * endless), observers=[recorder], broken_token=99)
    broken = stack.submit(ask("broken", last=97, max_tokens=endless))
    good = stack.submit(ask("good"))

    with pytest.raises(RequestError, match="token 99 cannot be decoded: no such text"):
        await deltas_of(broken)

    assert await text_of(good) == "11 12 13 "
    await until(lambda: any(isinstance(event, Failed) and event.status == "error" for event in recorder.events))
    assert "cannot be decoded" in caplog.text


async def test_an_engine_that_dies_without_a_successor_ends_everything_with_its_error(make: MakeStack) -> None:
    engine = CountingEngine(slots=2, stepwise=True)
    stack = make(engine)
    generations = [stack.submit(ask(str(number))) for number in range(5)]
    engine.wait_until_entered()

    engine.fail_next = RuntimeError("out of memory")
    engine.allow.release(2)

    for generation in generations:
        with pytest.raises(RequestError, match="engine counting failed in a step: RuntimeError: out of memory"):
            await deltas_of(generation)
    assert not stack.healthy()
    with pytest.raises(EngineError, match="out of memory"):
        stack.submit(ask("later"))
    assert (stack.counts().waiting, stack.counts().running) == (0, 0)


async def test_a_change_of_settings_reaches_the_scheduler_and_survives_refusals(make: MakeStack) -> None:
    stack = make(CountingEngine(slots=4))

    await stack.reconfigure({"batcher": {"max_batch_size": 2, "batch_timeout_ms": 0}})
    with pytest.raises(SettingsError, match="opened with 4 slots"):
        await stack.reconfigure({"batcher": {"max_batch_size": 9, "batch_timeout_ms": 7}})

    limits = stack._failover.serving.driver._scheduler.limits
    assert (limits.max_batch_size, limits.timeout_s) == (2, 0.0)
    assert stack.optimization.batcher.batch_timeout_ms == 0
