"""When an engine dies under its requests, the next one of the preference takes over."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from muai_lab.engines.selection import Candidate, EngineCandidates
from muai_lab.errors import EngineError, RequestCancelled, RequestError, RequestTimeout
from muai_lab.models.registry import ModelSource
from muai_lab.settings.schema import BatcherSettings, OptimizationSettings
from muai_lab.stack.events import Event, Failed, Finished
from muai_lab.stack.generation import Generation
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.stack import InferenceStack
from tests.unit.server_fakes import DEADLINE_S, ByteTokenizer, ParrotEngine

pytestmark = pytest.mark.anyio

SOURCE = ModelSource("parrot", None, None, "embedded", "0" * 64, False, "parrot")


class Named(ParrotEngine):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.info = type(self.info)(name, "1", "cpu", "fp32", 1_000_000)


class Log:
    """An observer that keeps how requests ended, and on which engine."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str, str]] = []

    def of(self, engine: str) -> Any:
        log = self

        class _One:
            def observe(self, events: Sequence[Event]) -> None:
                for event in events:
                    if isinstance(event, Finished | Failed):
                        log.ends.append((engine, event.request_id, type(event).__name__))

        return _One()


def stack_of(*engines: Named, fall_back: bool = True, load: Callable[[Named], Named] = lambda engine: engine) -> tuple:
    log = Log()
    candidates = EngineCandidates(
        [Candidate(engine.info.name, lambda: None, lambda engine=engine: load(engine)) for engine in engines],
        model="parrot",
        fall_back=fall_back,
    )
    stack = InferenceStack(
        "parrot",
        SOURCE,
        ByteTokenizer(),  # type: ignore[arg-type]
        candidates,
        OptimizationSettings(batcher=BatcherSettings(max_batch_size=4)),
        observers=lambda info: [log.of(info.name)],
    )
    return stack, log


def ask(name: str, prompt: bytes = b"ab", **more: Any) -> GenerationRequest:
    return GenerationRequest(name, list(prompt), more.pop("max_tokens", 4), ignore_eos=True, **more)


async def text_of(generation: Generation) -> str:
    return "".join([delta.text async for delta in generation])


async def test_what_nothing_was_streamed_of_is_run_again_on_the_next_engine() -> None:
    first, second = Named("first"), Named("second")
    stack, log = stack_of(first, second)
    first.broken = True

    texts = await asyncio.gather(*(text_of(stack.submit(ask(str(number)))) for number in range(9)))

    assert texts == ["ABAB"] * 9
    assert stack.info.engine.name == "second"
    assert stack.info.skipped[0][0] == "first"
    assert "the parrot is dead" in stack.info.skipped[0][1]
    assert sorted(log.ends) == sorted(("second", str(number), "Finished") for number in range(9))
    await stack.close()
    assert first.closed
    assert second.closed


async def test_what_was_partly_streamed_ends_with_an_error_that_says_so() -> None:
    first, second = Named("first"), Named("second")
    stack, log = stack_of(first, second)
    begun = stack.submit(ask("begun", max_tokens=500_000))
    await anext(begun)
    first.broken = True

    with pytest.raises(RequestError, match="after part of the output was streamed"):
        await text_of(begun)

    assert await text_of(stack.submit(ask("later"))) == "ABAB"
    await stack.close()  # the observers have been told of everything then
    assert ("first", "begun", "Failed") in log.ends


async def test_an_answer_that_is_wanted_whole_is_begun_anew_however_far_it_was() -> None:
    first, second = Named("first"), Named("second")
    stack, _ = stack_of(first, second)
    whole = stack.submit(ask("whole", max_tokens=2000, stream=False))
    streamed = stack.submit(ask("beside", max_tokens=500_000))
    await anext(streamed)  # so the first engine has produced tokens of both
    first.broken = True

    assert await text_of(whole) == "AB" * 1000
    await stack.close()


async def test_requests_that_come_while_an_engine_takes_over_wait_for_it() -> None:
    first, second = Named("first"), Named("second")
    loading, loaded = threading.Event(), threading.Event()

    def load(engine: Named) -> Named:
        if engine is second:
            loading.set()
            assert loaded.wait(DEADLINE_S)
        return engine

    stack, _ = stack_of(first, second, load=load)
    first.broken = True
    before = asyncio.ensure_future(text_of(stack.submit(ask("before"))))
    await asyncio.to_thread(loading.wait, DEADLINE_S)

    during = asyncio.ensure_future(text_of(stack.submit(ask("during"))))
    cancelled = stack.submit(ask("cancelled"))
    cancelled.cancel()
    late = stack.submit(ask("late", timeout_s=0.01))
    with pytest.raises(RequestTimeout):
        await text_of(late)
    assert stack.healthy()
    assert stack.counts().waiting == 2
    loaded.set()

    assert await before == "ABAB"
    assert await during == "ABAB"
    with pytest.raises(RequestCancelled):
        await text_of(cancelled)
    await stack.close()


async def test_a_second_death_is_survived_by_a_third_engine() -> None:
    engines = [Named("first"), Named("second"), Named("third")]
    engines[0].broken = engines[1].broken = True
    stack, _ = stack_of(*engines)

    with pytest.raises(RequestError, match="it is the second engine that failed under it"):
        await text_of(stack.submit(ask("a")))
    assert await text_of(stack.submit(ask("b"))) == "ABAB"

    assert stack.info.engine.name == "third"
    assert [name for name, _ in stack.info.skipped] == ["first", "second"]
    await stack.close()


class Mortal(Named):
    """Dies of a prompt with an exclamation mark."""

    def speak(self, slots: Sequence[int]) -> list[int]:
        self.broken = self.broken or any(b"!" in self._said[slot][0] for slot in slots)
        return super().speak(slots)


@pytest.mark.parametrize("fatal", range(4))
async def test_a_request_of_which_engines_die_takes_two_with_it_and_no_other_request(fatal: int) -> None:
    engines = [Mortal("first"), Mortal("second"), Mortal("third")]
    stack, log = stack_of(*engines)
    engines[0].gate.clear()
    prompts = [b"x!" if number == fatal else b"ab" for number in range(7)]
    asked = [stack.submit(ask(str(number), prompt)) for number, prompt in enumerate(prompts)]
    engines[0].gate.set()

    texts = await asyncio.gather(*(text_of(generation) for generation in asked), return_exceptions=True)

    assert isinstance(texts.pop(fatal), RequestError)
    assert texts == ["ABAB"] * 6
    assert stack.info.engine.name == "third"
    assert stack.healthy()
    await stack.close()  # the observers have been told of everything then
    assert [(name, kind) for _, name, kind in log.ends if kind == "Failed"] == [(str(fatal), "Failed")]


async def test_without_another_engine_every_request_ends_and_the_stack_says_that_it_is_ill() -> None:
    only = Named("only")
    stack, log = stack_of(only)
    only.broken = True
    generations = [stack.submit(ask(str(number))) for number in range(6)]

    for generation in generations:
        with pytest.raises(RequestError, match="the parrot is dead"):
            await text_of(generation)

    assert not stack.healthy()
    with pytest.raises(EngineError, match="the parrot is dead"):
        stack.submit(ask("after"))
    assert stack.counts().waiting == stack.counts().running == 0
    await stack.close()
    assert len([end for end in log.ends if end[2] == "Failed"]) == 6


async def test_with_fallback_off_the_engines_own_error_reaches_the_caller() -> None:
    first, second = Named("first"), Named("second")
    stack, _ = stack_of(first, second, fall_back=False)
    first.broken = True

    with pytest.raises(RequestError, match="engine first failed in a step"):
        await text_of(stack.submit(ask("a")))

    assert not stack.healthy()
    await stack.close()


def test_an_engine_that_does_not_load_is_skipped_with_its_reason() -> None:
    def load(engine: Named) -> Named:
        if engine.info.name == "first":
            raise EngineError("first", "no room")
        return engine

    stack, _ = stack_of(Named("first"), Named("second"), load=load)

    assert stack.info.engine.name == "second"
    assert stack.info.skipped == (("first", "no room"),)
    asyncio.run(stack.close())


def test_when_none_loads_the_error_names_each_with_its_reason() -> None:
    def load(engine: Named) -> Named:
        raise EngineError(engine.info.name, f"no room for {engine.info.name}")

    with pytest.raises(EngineError) as caught:
        stack_of(Named("first"), Named("second"), load=load)

    assert "first: no room for first" in str(caught.value)
    assert "second: no room for second" in str(caught.value)
