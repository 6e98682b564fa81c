"""Deadlines of requests in the scheduler, in virtual time."""

from __future__ import annotations

import pytest

from muai_lab.stack.events import Failed
from tests.unit.scheduler_steps import complete, request, scheduler


@pytest.mark.parametrize("running", [True, False])
def test_a_deadline_ends_a_request_wherever_it_is(running: bool) -> None:
    batch = scheduler(slots=1)
    if not running:
        batch.add(request("before"), 0.0)
    batch.add(request("a", timeout_s=2.0), 0.0)
    complete(batch, batch.plan(0.0), 0.0)
    batch.take_events()

    batch.plan(2.0)

    (failed,) = [event for event in batch.take_events() if isinstance(event, Failed)]
    assert (failed.request_id, failed.status, failed.at) == ("a", "timeout", 2.0)


def test_a_slot_freed_by_a_deadline_is_given_away_in_the_same_plan() -> None:
    batch = scheduler(slots=1)
    batch.add(request("a", timeout_s=2.0), 0.0)
    complete(batch, batch.plan(0.0), 0.0)
    batch.add(request("b"), 1.0)

    plan = batch.plan(2.0)

    assert plan.release == tuple(chunk.slot for chunk in plan.prefill)


def test_an_idle_scheduler_wakes_up_for_the_next_deadline() -> None:
    batch = scheduler(min_batch_size=2, timeout_s=60.0)
    batch.add(request("a", timeout_s=2.0), 0.0)

    assert batch.plan(0.0).wait_until == 2.0
    assert batch.plan(2.0).wait_until is None


def test_an_id_may_be_used_again_and_has_only_its_new_deadline() -> None:
    batch = scheduler()
    batch.add(request("a", timeout_s=1.0), 0.0)
    batch.fail("a", 0.1, status="cancelled", message="gone")
    batch.add(request("a", timeout_s=5.0), 0.5)

    complete(batch, batch.plan(1.0), 1.0)

    assert batch.running == 1


def test_deadlines_of_ended_requests_do_not_pile_up() -> None:
    batch = scheduler()
    for number in range(5_000):
        batch.add(request(str(number), max_tokens=1, timeout_s=3600.0), float(number))
        complete(batch, batch.plan(float(number)), float(number))

    assert len(batch._deadlines) < 200
