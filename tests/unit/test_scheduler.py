"""The scheduler, example by example, in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from muai_lab.engines.base import PromptCompute, Sampling
from muai_lab.stack.events import Admitted, Failed, Finished, LimitMoved, Lost, Queued, Step, Token
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.plan import Plan
from muai_lab.stack.waiting import AGING_S
from tests.unit.scheduler_steps import END, complete, kinds, request, scheduler


def test_without_work_it_waits_for_ever() -> None:
    assert scheduler().plan(1.0) == Plan()


def test_a_request_is_prefilled_then_decoded_until_its_last_token() -> None:
    batch = scheduler()
    sampling = Sampling(temperature=0.5, seed=3)
    batch.add(request("a", max_tokens=3, sampling=sampling), 1.0)

    first = batch.plan(1.0)
    complete(batch, first, 1.5)
    second = batch.plan(1.5)
    complete(batch, second, 2.0)
    third = batch.plan(2.0)
    complete(batch, third, 2.5)

    (chunk,) = first.prefill
    assert (list(chunk.tokens), chunk.start, chunk.final, chunk.sampling) == ([1, 2, 3], 0, True, sampling)
    assert (first.decode, second.prefill, second.decode, third.decode) == ((), (), (chunk.slot,), (chunk.slot,))
    assert batch.plan(2.5) == Plan(release=(chunk.slot,))
    events = batch.take_events()
    assert events[0] == Queued("a", 1.0, 3)
    assert events[1] == Admitted("a", 1.0, 1.0, 3)
    assert [event for event in events if isinstance(event, Token)] == [
        Token("a", 1.5, 7, 0),
        Token("a", 2.0, 7, 1),
        Token("a", 2.5, 7, 2),
    ]
    assert events[-2] == Finished("a", 2.5, "length", 3, 3, 1.0, 1.0, 1.5)


def test_a_step_tells_what_was_computed_and_what_is_left() -> None:
    batch = scheduler(slots=2)
    for name in "abc":
        batch.add(request(name, prompt_tokens=5), 0.0)

    complete(batch, batch.plan(0.0), 0.25)

    assert batch.take_events()[-1] == Step(
        at=0.25, began=0.25, batch=2, prefill_tokens=10, decode_tokens=0, running=2, waiting=1, limit=2
    )


def test_the_end_token_ends_a_sequence_and_is_counted() -> None:
    batch = scheduler()
    batch.add(request("a", max_tokens=9), 0.0)
    complete(batch, batch.plan(0.0), 1.0)

    complete(batch, batch.plan(1.0), 2.0, token=END)

    finished = next(event for event in batch.take_events() if isinstance(event, Finished))
    assert (finished.reason, finished.output_tokens) == ("stop", 2)


def test_ignore_eos_goes_on_past_the_end_token() -> None:
    batch = scheduler()
    batch.add(request("a", max_tokens=2, ignore_eos=True), 0.0)
    complete(batch, batch.plan(0.0), 1.0, token=END)
    complete(batch, batch.plan(1.0), 2.0, token=END)

    finished = next(event for event in batch.take_events() if isinstance(event, Finished))
    assert (finished.reason, finished.output_tokens) == ("length", 2)


def test_a_sequence_joins_while_another_decodes() -> None:
    batch = scheduler()
    batch.add(request("a"), 0.0)
    complete(batch, batch.plan(0.0), 1.0)
    batch.add(request("b"), 1.0)

    plan = batch.plan(1.0)

    assert len(plan.decode) == len(plan.prefill) == 1
    assert plan.decode[0] != plan.prefill[0].slot


def test_a_batch_is_held_until_enough_wait() -> None:
    batch = scheduler(min_batch_size=2, timeout_s=0.5)
    batch.add(request("a"), 10.0)

    assert batch.plan(10.2) == Plan(wait_until=10.5)

    batch.add(request("b"), 10.2)
    assert len(batch.plan(10.2).prefill) == 2


def test_a_hold_ends_when_the_oldest_has_waited_long_enough() -> None:
    batch = scheduler(min_batch_size=3, timeout_s=0.5)
    batch.add(request("a"), 10.0)
    batch.add(request("b"), 10.4)

    plan = batch.plan(10.5)

    assert len(plan.prefill) == 2


def test_a_hold_does_not_stop_those_that_decode() -> None:
    batch = scheduler(min_batch_size=2, timeout_s=5.0)
    batch.add(request("a"), 0.0)
    complete(batch, batch.plan(5.0), 5.0)
    batch.add(request("b"), 5.0)

    plan = batch.plan(5.1)

    assert (len(plan.prefill), len(plan.decode)) == (0, 1)


def test_nobody_is_held_for_company_that_would_find_no_room() -> None:
    batch = scheduler(slots=3, min_batch_size=2, timeout_s=5.0)
    batch.add(request("a"), 0.0)
    batch.add(request("b"), 0.0)
    complete(batch, batch.plan(0.0), 0.0)
    batch.add(request("c"), 1.0)

    assert len(batch.plan(1.0).prefill) == 1


def test_one_step_takes_in_no_more_prompt_tokens_than_the_limit() -> None:
    batch = scheduler(max_prefill_tokens=10)
    for name in "abc":
        batch.add(request(name, prompt_tokens=5), 0.0)

    assert [len(chunk.tokens) for chunk in batch.plan(0.0).prefill] == [5, 5]


def test_a_prompt_beyond_the_limit_is_computed_in_pieces_and_followed_by_what_still_fits() -> None:
    batch = scheduler(max_prefill_tokens=10)
    batch.add(request("a", prompt_tokens=25), 0.0)
    batch.add(request("b"), 0.0)
    pieces = []

    for at in range(3):
        plan = batch.plan(float(at))
        pieces.append([(chunk.slot, chunk.start, len(chunk.tokens), chunk.final) for chunk in plan.prefill])
        finals = [chunk.slot for chunk in plan.prefill if chunk.final]
        batch.complete(dict.fromkeys(finals, 7), began=0.0, now=0.0)

    assert pieces == [[(0, 0, 10, False)], [(0, 10, 10, False)], [(0, 20, 5, True), (1, 0, 3, True)]]


def test_a_long_prompt_does_not_stop_those_that_decode() -> None:
    batch = scheduler(max_prefill_tokens=10)
    batch.add(request("a", max_tokens=9), 0.0)
    complete(batch, batch.plan(0.0), 0.0)
    batch.add(request("long", prompt_tokens=35), 0.0)

    for _ in range(3):
        plan = batch.plan(0.0)
        batch.complete({plan.decode[0]: 7}, began=0.0, now=0.0)
        assert (len(plan.decode), [len(chunk.tokens) for chunk in plan.prefill]) == (1, [10])


def test_a_prompt_that_cannot_be_cut_is_taken_alone() -> None:
    batch = scheduler(max_prefill_tokens=10, prompts=PromptCompute.WHOLE)
    batch.add(request("a", prompt_tokens=50), 0.0)
    batch.add(request("b"), 0.0)

    assert [len(chunk.tokens) for chunk in batch.plan(0.0).prefill] == [50]


def test_prompts_that_are_padded_cost_their_number_times_the_longest() -> None:
    batch = scheduler(max_prefill_tokens=12, prompts=PromptCompute.PADDED)
    for name, length in (("a", 2), ("b", 4), ("c", 3), ("d", 1)):
        batch.add(request(name, prompt_tokens=length), 0.0)

    assert [len(chunk.tokens) for chunk in batch.plan(0.0).prefill] == [2, 4, 3]


def test_a_lower_priority_value_goes_first_and_arrival_decides_within_one() -> None:
    batch = scheduler(slots=4)
    for name, priority in (("a", 1), ("b", 0), ("c", -1), ("d", 0)):
        batch.add(request(name, priority=priority), 0.0)

    batch.plan(0.0)

    assert [name for kind, name in kinds(batch) if kind is Admitted] == ["c", "b", "d", "a"]


def test_nobody_waits_for_ever_behind_a_better_priority() -> None:
    batch = scheduler(slots=1)
    batch.add(request("patient", priority=1), 0.0)
    batch.add(request("urgent", priority=0), AGING_S + 0.1)

    batch.plan(AGING_S + 0.1)

    assert (Admitted, "patient") in kinds(batch)


def test_a_cancelled_sequence_frees_its_slot_for_the_very_next_plan() -> None:
    batch = scheduler(slots=1)
    batch.add(request("a"), 0.0)
    plan = batch.plan(0.0)
    slot = plan.prefill[0].slot
    complete(batch, plan, 0.0)
    batch.add(request("b"), 0.0)

    batch.fail("a", 0.1, status="cancelled", message="gone")
    batch.fail("a", 0.1, status="cancelled", message="gone")
    plan = batch.plan(0.1)

    assert (plan.release, plan.decode, [chunk.slot for chunk in plan.prefill]) == ((slot,), (), [slot])
    failed = [event for event in batch.take_events() if isinstance(event, Failed)]
    assert failed == [Failed("a", 0.1, "cancelled", "gone", 0.0)]


def test_a_sequence_that_is_cancelled_while_the_step_runs_gets_no_token() -> None:
    batch = scheduler()
    batch.add(request("a"), 0.0)
    plan = batch.plan(0.0)

    batch.fail("a", 0.1, status="cancelled", message="gone")
    complete(batch, plan, 0.2)

    assert [kind for kind, _ in kinds(batch)] == [Queued, Admitted, Failed]


def test_a_request_cancelled_while_it_waits_is_never_admitted() -> None:
    batch = scheduler(slots=1)
    for name in "abc":
        batch.add(request(name), 0.0)
    complete(batch, batch.plan(0.0), 0.0)

    batch.fail("b", 0.1, status="cancelled", message="gone")
    batch.finish("a", 0.1)
    batch.plan(0.1)

    assert (Admitted, "b") not in (seen := kinds(batch))
    assert (Admitted, "c") in seen


def test_a_stop_string_ends_a_sequence_with_success() -> None:
    batch = scheduler()
    batch.add(request("a"), 0.0)
    complete(batch, batch.plan(0.0), 1.0)

    batch.finish("a", 1.5)
    batch.finish("a", 1.5)

    assert kinds(batch)[-1] == (Finished, "a")
    assert (batch.running, batch.free_slots) == (0, 4)


def test_an_id_in_use_is_refused() -> None:
    batch = scheduler()
    batch.add(request("a"), 0.0)

    with pytest.raises(ValueError, match="'a' is already in use"):
        batch.add(request("a"), 0.0)


def test_every_request_is_lost_when_the_engine_dies() -> None:
    batch = scheduler(slots=1)
    batch.add(request("a"), 0.0)
    batch.add(request("b"), 0.0)
    batch.plan(0.0)

    batch.lose_all(1.0, message="dead")

    assert kinds(batch)[-2:] == [(Lost, "a"), (Lost, "b")]
    assert batch.plan(1.0).empty
    assert batch.free_slots == 1


def test_a_lowered_limit_lets_sequences_run_out_and_admits_nobody_meanwhile() -> None:
    batch = scheduler(slots=4)
    for name in "abc":
        batch.add(request(name, max_tokens=2), 0.0)
    complete(batch, batch.plan(0.0), 0.0)
    batch.add(request("d"), 0.0)

    batch.set_limits(replace(batch.limits, max_batch_size=1), 0.0)
    plan = batch.plan(0.0)
    complete(batch, plan, 0.0)

    assert (len(plan.decode), plan.prefill) == (3, ())
    assert len(batch.plan(0.0).prefill) == 1


def test_a_plan_must_be_completed_before_the_next() -> None:
    batch = scheduler()
    batch.add(request("a"), 0.0)
    batch.plan(0.0)

    with pytest.raises(RuntimeError, match="not completed"):
        batch.plan(0.0)


def test_only_a_plan_can_be_completed() -> None:
    with pytest.raises(RuntimeError, match="no plan"):
        scheduler().complete({}, began=0.0, now=0.0)


def test_limits_beyond_the_slots_are_refused_and_change_nothing() -> None:
    batch = scheduler(slots=4)

    with pytest.raises(ValueError, match="5 is more than the engine's 4 slots"):
        batch.set_limits(BatchLimits(5), 0.0)

    assert (batch.limits.max_batch_size, batch.running_limit, batch.take_events()) == (4, 4, [])


def test_a_change_of_the_limit_is_told() -> None:
    batch = scheduler(slots=4)

    batch.set_limits(BatchLimits(2), 1.0)

    assert batch.take_events() == [LimitMoved(1.0, 4, 2, "the limits were changed")]


def test_more_sequences_than_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="5 is more than the engine's 4 slots"):
        scheduler(slots=4, max_batch_size=5)
