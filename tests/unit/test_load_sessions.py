"""Sessions in the load generator, in virtual time: each turn waits for the answer before it and carries it along."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from muai_lab.load.generator import LoadResult, generate
from muai_lab.load.plan import LoadPlan
from muai_lab.load.records import records_table
from muai_lab.request_record import RequestRecord
from muai_lab.workload.schedule import Schedule, ScheduledRequest
from tests.unit.virtual_time import VirtualTimeLoop, run_virtual

PLAN = LoadPlan(warmup_s=2.0, duration_s=8.0, drain_s=5.0, request_timeout_s=60.0, concurrency=2)
MICROSECOND = 1_000


class Speaker:
    """Answers `re: WHAT WAS SAID` after a time of the request's own; those without a time are refused."""

    notes: tuple[str, ...] = ()

    def __init__(self, loop: VirtualTimeLoop, latency_s: Callable[[int], float | None]) -> None:
        self.loop = loop
        self.latency_s = latency_s
        self.seen: dict[int, list[str]] = {}

    async def open(self, schedule: Schedule) -> None:
        """Nothing to open."""

    async def send(self, request: ScheduledRequest, record: RequestRecord) -> None:
        record.sent_ns = self.loop.now_ns()
        said = [message["content"] for message in request.conversation()]
        self.seen[request.index] = said
        latency_s = self.latency_s(request.index)
        if latency_s is None:
            record.end("rejected", self.loop.now_ns(), "full")
            return
        await asyncio.sleep(latency_s)
        record.chunk_t_ns.append(self.loop.now_ns())
        record.chunk_tokens.append(1)
        if record.answer is not None:
            record.answer += ["re: ", said[-1]]
        record.end("ok", self.loop.now_ns())

    async def close(self) -> None:
        """Nothing to close."""


def schedule(*sessions: tuple[float | None, list[float]]) -> Schedule:
    """Sessions: when the first turn is due, and the think time before each later one."""
    requests = []
    for number, (intended_s, pauses) in enumerate(sessions):
        for turn, pause_s in enumerate([None, *pauses]):
            requests.append(
                ScheduledRequest(
                    len(requests),
                    intended_s if turn == 0 else None,
                    f"{number}.{turn}",
                    None,
                    1,
                    4,
                    session=number,
                    turn=turn,
                    think_s=pause_s,
                )
            )
    return Schedule.of(requests)


def load(
    drawn: Schedule, latency_s: Callable[[int], float | None], plan: LoadPlan = PLAN
) -> tuple[LoadResult, Speaker]:
    async def main(loop: VirtualTimeLoop) -> tuple[LoadResult, Speaker]:
        target = Speaker(loop, latency_s)
        return await generate(drawn, target, plan, clock=loop.now_ns, cpu_clock=lambda: 0), target

    return run_virtual(main)


def due_s(result: LoadResult) -> list[float]:
    return [round((record.due_ns - result.window.load_start_ns) / 1e9, 6) for record in result.records]


def test_a_turn_is_due_its_think_time_after_the_answer_before_it() -> None:
    result, _ = load(schedule((1.0, [0.5, 2.0])), lambda index: 1.0)

    assert due_s(result) == [1.0, 2.5, 5.5]
    for record in result.records:
        assert record.intended_ns is not None
        assert abs((record.sent_ns or 0) - record.intended_ns) < MICROSECOND


def test_a_turn_carries_everything_that_was_said_before_it() -> None:
    _, target = load(schedule((0.0, [0.1, 0.1])), lambda index: 0.2)

    assert target.seen[2] == ["0.0", "re: 0.0", "0.1", "re: 0.1", "0.2"]


def test_sessions_do_not_wait_for_each_other() -> None:
    result, target = load(schedule((0.0, [1.0]), (0.5, [1.0])), lambda index: 3.0 if index < 2 else 0.1)

    assert dict(zip([record.index for record in result.records], due_s(result), strict=True)) == {
        0: 0.0,
        2: 0.5,
        3: 1.6,
        1: 4.0,
    }
    assert target.seen[3] == ["1.0", "re: 1.0", "1.1"]


def test_a_failed_turn_ends_its_session_and_the_rest_is_told_of() -> None:
    result, _ = load(schedule((0.0, [0.1, 0.1, 0.1]), (0.0, [0.1])), lambda index: None if index == 1 else 0.5)

    assert sorted(record.index for record in result.records) == [0, 1, 4, 5]
    assert result.notes == ("turns not sent because an earlier turn of theirs failed: 2",)


def test_a_turn_that_is_due_after_the_load_is_not_sent() -> None:
    result, _ = load(schedule((9.0, [0.5, 0.5, 20.0])), lambda index: 0.4)

    assert due_s(result) == [9.0, 9.9]
    assert result.notes == ("turns not sent because they were due after the end of the load: 2",)
    assert result.window.drain_end_ns - result.window.measure_end_ns == pytest.approx(0.3e9, abs=MICROSECOND)


def test_a_slot_of_the_closed_loop_is_one_session_at_a_time() -> None:
    result, _ = load(schedule(*[(None, [0.5, 0.5])] * 4), lambda index: 1.0)

    assert due_s(result) == [0.0, 0.0, 1.5, 1.5, 3.0, 3.0, 4.0, 4.0, 5.5, 5.5, 7.0, 7.0]
    assert all(record.intended_ns is None and record.released_ns is not None for record in result.records)


def test_a_schedule_that_runs_out_does_not_wait_for_those_who_think() -> None:
    result, _ = load(schedule((None, [5.0]), (None, [])), lambda index: 1.0)

    assert due_s(result) == [0.0, 0.0]
    assert result.window.duration_s == 0
    assert result.window.drain_end_ns - result.window.load_start_ns == pytest.approx(1e9, abs=MICROSECOND)


def test_answers_are_let_go_once_the_next_turn_has_them() -> None:
    result, _ = load(schedule((0.0, [0.1])), lambda index: 0.1)

    assert [record.answer for record in result.records] == [None, None]
    assert records_table(result.records, result.window)["turn"].to_pylist() == [0, 1]


def test_an_interruption_ends_those_who_think_too() -> None:
    async def main(loop: VirtualTimeLoop) -> LoadResult:
        target = Speaker(loop, lambda index: 0.1)
        task = asyncio.create_task(generate(schedule((0.0, [6.0])), target, PLAN, clock=loop.now_ns))
        await asyncio.sleep(3.0)
        task.cancel()
        return await task

    result = run_virtual(main)

    assert result.interrupted
    assert [record.status for record in result.records] == ["ok"]
