"""A step that raises: the request that is to blame fails, the others get what they would have got without it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from muai_lab.engines.base import PrefixEngine, PromptCompute, SlotFaults
from muai_lab.errors import RequestError
from muai_lab.settings.schema import BatcherSettings, OptimizationSettings
from muai_lab.stack.events import Failed, Finished, Lost, StepFailed, Token
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.recovery import recover
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.scheduler import Scheduler
from muai_lab.stack.trial import Trial
from tests.unit.counting_engine import CountingEngine
from tests.unit.hostile_engine import HostileEngine
from tests.unit.stack_on_counting import Recorder, ask, open_stack, stack_on, text_of, until

pytestmark = pytest.mark.anyio

FIRST = 10  # last prompt token of the first request; the others count on by 3


@dataclass(frozen=True)
class Traffic:
    """Requests by number. triggers: culprits -> output index from which on their steps raise."""

    count: int
    slots: int
    triggers: dict[int, int]
    max_tokens: int
    prompts: PromptCompute

    @property
    def culprits(self) -> dict[int, int]:
        return {FIRST + 3 * number: index for number, index in self.triggers.items()}

    def request(self, number: int, **more: object) -> GenerationRequest:
        return ask(str(number), FIRST + 3 * number, self.max_tokens, **more)

    def output(self, number: int) -> list[int]:
        last = FIRST + 3 * number
        return [(last + 1 + index) % CountingEngine.vocab_size for index in range(self.max_tokens)]

    def will_fail(self, number: int) -> bool:
        return self.triggers.get(number, self.max_tokens) < self.max_tokens

    def most_failed_steps(self) -> int:
        return len(self.triggers) * (math.ceil(math.log2(self.slots)) + 1)


@st.composite
def traffics(draw: st.DrawFn) -> Traffic:
    count = draw(st.integers(1, 14))
    return Traffic(
        count,
        draw(st.integers(1, 6)),
        draw(st.dictionaries(st.integers(0, count - 1), st.integers(0, 6), max_size=4)),
        draw(st.integers(1, 6)),
        draw(st.sampled_from(PromptCompute)),
    )


def run(scheduler: Scheduler, engine: HostileEngine, cancel_at: dict[int, str]) -> list[object]:
    """Step to the end in virtual time, as a driver does it; returns the events."""
    events: list[object] = []
    for step in range(2000):
        now = step / 10
        if step in cancel_at:
            scheduler.fail(cancel_at[step], now, status="cancelled", message="gone")
        plan = scheduler.plan(now)
        for slot in plan.release:
            engine.release(slot)
        events += scheduler.take_events()
        if plan.empty:
            if not scheduler.waiting:
                return events
            continue
        computed: Sequence[int] = plan.decode
        try:
            tokens = dict(zip(plan.decode, engine.decode(plan.decode), strict=True)) if plan.decode else {}
            computed = [chunk.slot for chunk in plan.prefill]
            firsts = engine.prefill(plan.prefill) if plan.prefill else []
        except RuntimeError as error:
            recover(engine)
            scheduler.step_failed(computed, began=now, now=now, message=str(error))
        else:
            tokens |= {slot: token for slot, token in zip(computed, firsts, strict=True) if token is not None}
            scheduler.complete(tokens, began=now, now=now)
        events += scheduler.take_events()
    raise AssertionError("the work does not end")


@settings(max_examples=150, deadline=None)
@given(
    traffic=traffics(),
    budget=st.sampled_from([1, 2, 100]),
    cancelled=st.dictionaries(st.integers(0, 40), st.integers(0, 13), max_size=3),
)
def test_in_any_traffic_culprits_fail_and_innocents_finish_once_with_their_own_tokens(
    traffic: Traffic, budget: int, cancelled: dict[int, int]
) -> None:
    engine = HostileEngine(traffic.slots, traffic.culprits, prompts=traffic.prompts)
    limits = BatchLimits(traffic.slots, max_prefill_tokens=budget)
    scheduler = Scheduler(limits, slots=traffic.slots, prompts=traffic.prompts)
    for number in range(traffic.count):
        scheduler.add(traffic.request(number), 0.0)

    events = run(scheduler, engine, {step: str(number) for step, number in cancelled.items()})

    ends = [event for event in events if isinstance(event, Finished | Failed)]
    assert sorted(int(event.request_id) for event in ends) == list(range(traffic.count))
    for end in ends:
        number = int(end.request_id)
        tokens = [event.token for event in events if isinstance(event, Token) and event.request_id == str(number)]
        if isinstance(end, Finished):
            assert tokens == traffic.output(number)
            assert not traffic.will_fail(number)
        else:
            assert tokens == traffic.output(number)[: len(tokens)]
            assert end.status == "cancelled" or traffic.will_fail(number)
    assert engine.raised <= traffic.most_failed_steps()
    assert scheduler.free_slots == traffic.slots
    assert not scheduler.on_trial


@settings(max_examples=40, deadline=None)
@given(traffic=traffics(), streamed=st.booleans())
def test_a_stack_outlives_its_culprits(traffic: Traffic, streamed: bool) -> None:
    engine, recorder = HostileEngine(traffic.slots, traffic.culprits, prompts=traffic.prompts), Recorder()

    async def scenario() -> list[str | BaseException]:
        batching = BatcherSettings(max_batch_size=traffic.slots, max_prefill_tokens=16)
        stack = stack_on(engine, OptimizationSettings(batcher=batching), observers=[recorder])
        asked = [stack.submit(traffic.request(number, stream=streamed)) for number in range(traffic.count)]
        texts = await asyncio.gather(*(text_of(generation) for generation in asked), return_exceptions=True)
        assert stack.healthy()
        assert await text_of(stack.submit(ask("after", last=80))) == "81 82 83 "
        await stack.close()
        return texts

    texts = asyncio.run(scenario())

    for number, text in enumerate(texts):
        if traffic.will_fail(number):
            assert isinstance(text, RequestError), f"request {number} should have failed"
        else:
            assert text == "".join(f"{token} " for token in traffic.output(number))
    assert not recorder.of(Lost)
    assert engine.closed == 1


def failing(traffic: Traffic, **kind: bool) -> tuple[list[str], list[str], list[StepFailed]]:
    """Who finished, who failed, and the failed steps."""
    engine = HostileEngine(traffic.slots, traffic.culprits, **kind)
    scheduler = Scheduler(BatchLimits(traffic.slots), slots=traffic.slots)
    for number in range(traffic.count):
        scheduler.add(traffic.request(number), 0.0)
    events = run(scheduler, engine, {})
    finished = [event.request_id for event in events if isinstance(event, Finished)]
    failed = [event.request_id for event in events if isinstance(event, Failed)]
    return sorted(finished), sorted(failed), [event for event in events if isinstance(event, StepFailed)]


def test_one_culprit_of_32_is_found_by_halves() -> None:
    finished, failed, steps = failing(Traffic(32, 32, {21: 2}, 4, PromptCompute.PIECES))

    assert failed == ["21"]
    assert len(finished) == 31
    assert [step.batch for step in steps] == [32, 16, 8, 4, 2, 1]
    assert [step.culprit for step in steps] == [None] * 5 + ["21"]


def test_what_raises_only_in_company_ends_after_three_steps_and_the_engine_goes_on() -> None:
    finished, failed, steps = failing(Traffic(4, 2, {1: 0}, 40, PromptCompute.PIECES), solo=False)

    assert failed == ["0", "1"]
    assert finished == ["2", "3"]
    assert len(steps) == 3


def test_while_suspects_are_tested_the_others_stand_still_and_then_go_on() -> None:
    engine = HostileEngine(4, {FIRST: 0})
    scheduler = Scheduler(BatchLimits(4), slots=4)
    scheduler.add(ask("beside", last=60, max_tokens=9), 0.0)
    scheduler.complete({0: engine.prefill(scheduler.plan(0.0).prefill)[0] or 0}, began=0.0, now=0.0)
    for number in range(2):
        scheduler.add(ask(str(number), FIRST + 3 * number, 3), 1.0)
    plan = scheduler.plan(1.0)
    assert plan.decode == (0,)
    recover(engine)
    scheduler.step_failed([chunk.slot for chunk in plan.prefill], began=1.0, now=1.0, message="poison")

    tested = scheduler.plan(2.0)

    assert scheduler.on_trial
    assert [list(chunk.tokens) for chunk in tested.prefill] == [[1, 2, FIRST]]
    assert tested.decode == ()
    assert scheduler.waiting == 2


async def test_a_slot_that_fails_by_itself_ends_its_request_only() -> None:
    class Partly(CountingEngine):
        def decode(self, slots: Sequence[int]) -> list[int]:
            tokens = dict(zip(slots, super().decode(slots), strict=True))
            bad = [slot for slot, token in tokens.items() if token == 42]
            if bad:
                faults = {slot: OverflowError("too large") for slot in bad}
                raise SlotFaults({slot: tokens[slot] for slot in tokens if slot not in bad}, faults)
            return list(tokens.values())

    recorder = Recorder()
    stack = open_stack(Partly(), observers=[recorder])
    asked = [stack.submit(ask(str(number), last)) for number, last in enumerate((10, 40, 70))]

    texts = await asyncio.gather(*(text_of(generation) for generation in asked), return_exceptions=True)

    assert [texts[0], texts[2]] == ["11 12 13 ", "71 72 73 "]
    assert "failed for this request: OverflowError: too large" in str(texts[1])
    assert not recorder.of(StepFailed)
    await until(lambda: len(recorder.of(Failed)) == 1)
    await stack.close()


async def test_a_copy_that_fails_turns_the_prefix_cache_off_and_nothing_else() -> None:
    class Copying(CountingEngine, PrefixEngine):
        def position_bytes(self) -> int:
            return 1

        def copy_out(self, slot: int, begin: int, end: int, block: int) -> Sequence[object]:
            raise MemoryError("no room for a copy")

        def copy_in(self, slot: int, blocks: Sequence[object]) -> None:
            raise AssertionError("nothing was copied out")

    stack = open_stack(Copying(context=500))
    prompt = list(range(40))

    for name in "ab":
        assert await text_of(stack.submit(GenerationRequest(name, prompt, 20, stream=True))) == "".join(
            f"{token} " for token in range(40, 60)
        )
    assert stack.healthy()
    await stack.close()


def test_a_trial_keeps_together_what_a_failed_step_left_out() -> None:
    trial = Trial()
    assert trial.raised(["a", "b", "c", "d"]) is None
    assert trial.group == ("a", "b")

    assert trial.raised(["b"]) == "b"

    assert trial.group == ("a",)
    trial.passed()
    assert trial.group == ("c", "d")
