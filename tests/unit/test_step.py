"""One step, as the engine's thread and virtual time both make it."""

from __future__ import annotations

import pytest

from muai_lab.stack.events import Admitted, Event, Finished, Queued, Step, Token
from muai_lab.stack.plan import Plan
from muai_lab.stack.step import CopiedOut, StepOutcome, run_step
from tests.unit.scheduler_steps import request, scheduler


class Steps:
    """Steps of one scheduler whose engine is a function; `seen` keeps plans and batches of events in order."""

    def __init__(self) -> None:
        self.scheduler = scheduler(slots=1)
        self.seen: list[Plan | list[Event]] = []

    def carry_out(self, plan: Plan, copied_out: CopiedOut) -> StepOutcome:
        self.seen.append(plan)
        return {chunk.slot: 7 for chunk in plan.prefill}, 1.0, 3.0

    def show(self) -> None:
        self.seen.append(self.scheduler.take_events())


def test_a_plan_is_shown_then_carried_out_then_completed_with_its_times() -> None:
    steps = Steps()
    steps.scheduler.add(request("a", max_tokens=1), 0.0)

    plan = run_step(steps.scheduler, 0.5, steps.carry_out, steps.show)

    before, carried_out, after = steps.seen
    assert [type(event) for event in before] == [Queued, Admitted]
    assert carried_out is plan
    assert [type(event) for event in after] == [Token, Finished, Step]
    assert (after[-1].began, after[-1].at) == (1.0, 3.0)


def test_a_plan_that_only_releases_is_carried_out_and_needs_no_completion() -> None:
    steps = Steps()
    steps.scheduler.add(request("a", max_tokens=1), 0.0)
    run_step(steps.scheduler, 0.0, steps.carry_out, steps.show)

    plan = run_step(steps.scheduler, 4.0, steps.carry_out, steps.show)

    assert (plan.empty, plan.release) == (True, (0,))
    assert steps.seen[-2] is plan
    assert steps.seen[-1] == []


def test_a_step_that_raises_is_left_to_the_caller() -> None:
    steps = Steps()
    steps.scheduler.add(request("a"), 0.0)

    def fail(plan: Plan, copied_out: CopiedOut) -> StepOutcome:
        raise MemoryError

    with pytest.raises(MemoryError):
        run_step(steps.scheduler, 0.0, fail, steps.show)

    with pytest.raises(RuntimeError, match="not completed"):
        steps.scheduler.plan(1.0)
    steps.scheduler.step_failed([0], began=0.0, now=1.0, message="no memory")
    assert steps.scheduler.plan(1.0).empty
