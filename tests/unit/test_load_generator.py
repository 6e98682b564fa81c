"""The generator's timing rules, in virtual time: every number is exact and nothing waits."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from muai_lab.errors import RunError
from muai_lab.load.generator import LoadProgress, LoadResult, generate
from muai_lab.load.own_limits import GeneratorExhausted
from muai_lab.load.plan import LoadPlan
from muai_lab.load.records import records_table
from muai_lab.request_record import RequestRecord
from muai_lab.workload.arrival import constant
from muai_lab.workload.schedule import Schedule, ScheduledRequest
from tests.unit.virtual_time import VirtualTimeLoop, run_virtual

PLAN = LoadPlan(warmup_s=2.0, duration_s=8.0, drain_s=5.0, request_timeout_s=60.0, concurrency=4)
MICROSECOND = 1_000


class TimedTarget:
    """Answers each request after a time of its own; notes how many are under way."""

    notes: tuple[str, ...] = ()

    def __init__(self, loop: VirtualTimeLoop, latency_s: Callable[[int], float]) -> None:
        self.loop = loop
        self.latency_s = latency_s
        self.in_flight = 0
        self.in_flight_at_start: list[int] = []
        self.closed = False

    async def open(self, schedule: Schedule) -> None:
        self.schedule = schedule

    async def send(self, request: ScheduledRequest, record: RequestRecord) -> None:
        record.sent_ns = self.loop.now_ns()
        self.in_flight += 1
        self.in_flight_at_start.append(self.in_flight)
        try:
            await asyncio.sleep(self.latency_s(request.index))
        finally:
            self.in_flight -= 1
        record.chunk_t_ns.append(self.loop.now_ns())
        record.chunk_tokens.append(1)
        record.end("ok", self.loop.now_ns())

    async def close(self) -> None:
        self.closed = True


def open_schedule(rate: float = 10.0, horizon_s: float = 10.0) -> Schedule:
    times = constant(rate, horizon_s).tolist()
    return Schedule.of([ScheduledRequest(i, t, "hello", None, 1, 4) for i, t in enumerate(times)])


def closed_schedule(count: int) -> Schedule:
    return Schedule.of([ScheduledRequest(i, None, "hello", None, 1, 4) for i in range(count)])


def load(
    schedule: Schedule,
    latency_s: Callable[[int], float],
    plan: LoadPlan = PLAN,
    progress: Callable[[LoadProgress], None] | None = None,
) -> tuple[LoadResult, TimedTarget]:
    async def main(loop: VirtualTimeLoop) -> tuple[LoadResult, TimedTarget]:
        target = TimedTarget(loop, latency_s)
        result = await generate(schedule, target, plan, clock=loop.now_ns, cpu_clock=lambda: 0, progress=progress)
        return result, target

    return run_virtual(main)


def phases(result: LoadResult) -> list[str]:
    return [result.window.phase(record.due_ns) for record in result.records]


class TestOpenLoop:
    def test_requests_leave_at_their_times_however_slow_the_answers_are(self) -> None:
        result, target = load(open_schedule(), lambda index: 4.0)

        lags = [record.sent_ns - record.intended_ns for record in result.records]
        assert len(lags) == 100
        assert max(map(abs, lags)) < MICROSECOND
        assert max(target.in_flight_at_start) == 40

    def test_a_stall_delays_what_was_due_in_it_and_nothing_after(self) -> None:
        async def main(loop: VirtualTimeLoop) -> LoadResult:
            def latency_s(index: int) -> float:
                if index == 30:
                    loop.stall(0.55)
                return 0.1

            return await generate(open_schedule(), TimedTarget(loop, latency_s), PLAN, clock=loop.now_ns)

        result = run_virtual(main)

        lags_ms = [round((record.sent_ns - record.intended_ns) / 1e6) for record in result.records]
        assert lags_ms[28:38] == [0, 0, 0, 450, 350, 250, 150, 50, 0, 0]
        assert lags_ms[38:] == [0] * 62

    def test_requests_due_together_leave_together(self) -> None:
        schedule = Schedule.of([ScheduledRequest(i, 3.0, "hello", None, 1, 4) for i in range(500)])
        result, target = load(schedule, lambda index: 1.0)

        assert {record.sent_ns for record in result.records} == {result.records[0].sent_ns}
        assert max(target.in_flight_at_start) == 500

    def test_the_phase_follows_from_the_due_time(self) -> None:
        result, _ = load(open_schedule(), lambda index: 3.0)

        assert phases(result) == ["warmup"] * 20 + ["measure"] * 80
        assert result.window.duration_s == 8.0

    def test_answers_that_come_in_the_drain_count(self) -> None:
        result, _ = load(open_schedule(), lambda index: 4.9)

        assert {record.status for record in result.records} == {"ok"}
        assert result.window.drain_end_ns - result.window.measure_end_ns == pytest.approx(4.8e9, abs=MICROSECOND)

    def test_what_has_no_end_when_the_drain_is_over_is_a_timeout(self) -> None:
        result, target = load(open_schedule(), lambda index: 1000.0 if index == 99 else 0.1)

        last = result.records[-1]
        assert last.status == "timeout"
        assert "drain_s = 5 s" in (last.error or "")
        assert last.stream_end_ns - result.window.measure_end_ns == pytest.approx(5e9, abs=MICROSECOND)
        assert target.in_flight == 0

    def test_a_request_is_given_up_after_its_own_timeout(self) -> None:
        plan = LoadPlan(warmup_s=2.0, duration_s=8.0, drain_s=5.0, request_timeout_s=1.5)
        result, _ = load(open_schedule(), lambda index: 9.0 if index == 5 else 0.1, plan)

        record = result.records[5]
        assert record.status == "timeout"
        assert "request_timeout_s = 1.5 s" in (record.error or "")
        assert record.stream_end_ns - record.sent_ns == pytest.approx(1.5e9, abs=MICROSECOND)
        assert sum(other.status == "ok" for other in result.records) == 99


class TestClosedLoop:
    def test_exactly_as_many_as_asked_for_are_under_way(self) -> None:
        result, target = load(closed_schedule(1000), lambda index: 0.1 + 0.05 * (index % 3))

        assert target.in_flight_at_start[:4] == [1, 2, 3, 4]
        assert set(target.in_flight_at_start[4:]) == {4}
        assert len(result.records) > 100

    def test_a_slot_sends_again_when_it_becomes_free(self) -> None:
        plan = LoadPlan(warmup_s=2.0, duration_s=8.0, drain_s=5.0, request_timeout_s=60.0, concurrency=1)
        result, _ = load(closed_schedule(1000), lambda index: 0.5, plan)

        ends = [record.stream_end_ns for record in result.records]
        assert [record.released_ns for record in result.records[1:]] == ends[:-1]
        assert all(record.sent_ns == record.released_ns for record in result.records)
        assert all(record.intended_ns is None for record in result.records)

    def test_no_slot_sends_after_the_window(self) -> None:
        result, _ = load(closed_schedule(1000), lambda index: 0.3)

        assert set(phases(result)) == {"warmup", "measure"}
        assert result.notes == ()

    def test_a_schedule_that_runs_out_ends_the_window_there_and_says_so(self) -> None:
        result, _ = load(closed_schedule(24), lambda index: 0.5)

        assert len(result.records) == 24
        assert result.window.measure_end_ns - result.window.load_start_ns == pytest.approx(3e9, abs=MICROSECOND)
        assert result.window.duration_s == pytest.approx(1.0)
        assert result.notes == (
            "all 24 requests of the schedule were sent after 3.0 s: the window ends there, 1.0 s long",
        )

    def test_a_schedule_that_runs_out_in_the_warm_up_measures_nothing_and_says_how_to_mend_it(self) -> None:
        result, _ = load(closed_schedule(8), lambda index: 0.5)

        assert result.window.duration_s == 0.0
        assert phases(result) == ["warmup"] * 8
        assert "nothing was measured; lower load.warmup_s or raise load.requests" in result.notes[0]

    def test_slots_that_are_refused_at_once_let_the_others_work(self) -> None:
        turns = 0

        class Refusing(TimedTarget):
            async def send(self, request: ScheduledRequest, record: RequestRecord) -> None:
                record.sent_ns = self.loop.now_ns()
                self.loop.call_soon(self.other_work)
                record.end("rejected", self.loop.now_ns(), f"{turns} turns so far")

            def other_work(self) -> None:
                nonlocal turns
                turns += 1

        async def main(loop: VirtualTimeLoop) -> LoadResult:
            return await generate(closed_schedule(400), Refusing(loop, lambda index: 0.0), PLAN, clock=loop.now_ns)

        result = run_virtual(main)

        assert [record.status for record in result.records] == ["rejected"] * 400
        assert result.records[-1].error == "396 turns so far"

    def test_slots_that_never_become_free_do_not_hold_up_the_end(self) -> None:
        result, _ = load(closed_schedule(100), lambda index: 1000.0)

        assert [record.status for record in result.records] == ["timeout"] * 4
        assert result.window.drain_end_ns - result.window.measure_end_ns == pytest.approx(5e9, abs=MICROSECOND)


class TestEndings:
    @pytest.mark.parametrize("schedule", [open_schedule(), closed_schedule(1000)], ids=["open", "closed"])
    def test_cancelling_keeps_the_records_and_marks_what_was_under_way(self, schedule: Schedule) -> None:
        async def main(loop: VirtualTimeLoop) -> tuple[LoadResult, TimedTarget]:
            target = TimedTarget(loop, lambda index: 0.75)
            task = asyncio.create_task(generate(schedule, target, PLAN, clock=loop.now_ns))
            await asyncio.sleep(5.0)
            task.cancel()
            return await task, target

        result, target = run_virtual(main)

        assert result.interrupted
        assert {record.status for record in result.records} == {"ok", "cancelled"}
        assert result.records[-1].error == "the run was interrupted"
        assert result.window.measure_end_ns == result.records[-1].stream_end_ns
        assert target.in_flight == 0
        assert target.closed
        assert records_table(result.records, result.window).num_rows == len(result.records)

    def test_an_interruption_in_the_warm_up_leaves_an_empty_window(self) -> None:
        async def main(loop: VirtualTimeLoop) -> LoadResult:
            task = asyncio.create_task(
                generate(open_schedule(), TimedTarget(loop, lambda index: 0.1), PLAN, clock=loop.now_ns)
            )
            await asyncio.sleep(1.0)
            task.cancel()
            return await task

        result = run_virtual(main)

        assert result.window.duration_s == 0.0
        assert set(phases(result)) == {"warmup"}
        assert result.generator.cpu_share is None

    def test_an_empty_schedule_is_refused_before_the_target_is_opened(self) -> None:
        with pytest.raises(RunError, match=r"the schedule is empty.*raise arrival\.rate"):
            load(closed_schedule(0), lambda index: 0.1)

    @pytest.mark.parametrize("schedule", [open_schedule(), closed_schedule(1000)], ids=["open", "closed"])
    def test_a_fault_of_the_target_ends_the_load_and_is_raised(self, schedule: Schedule) -> None:
        async def main(loop: VirtualTimeLoop) -> None:
            def latency_s(index: int) -> float:
                return 0.1 if index < 10 else {}[index]

            target = TimedTarget(loop, latency_s)
            try:
                await generate(schedule, target, PLAN, clock=loop.now_ns)
            finally:
                assert target.closed

        with pytest.raises(KeyError):
            run_virtual(main)

    def test_what_the_generator_itself_runs_out_of_ends_the_load_and_is_no_error_of_the_server(self) -> None:
        class Exhausted(TimedTarget):
            async def send(self, request: ScheduledRequest, record: RequestRecord) -> None:
                if request.index >= 30:
                    raise GeneratorExhausted("ran out of open files")
                await super().send(request, record)

        async def main(loop: VirtualTimeLoop) -> LoadResult:
            return await generate(open_schedule(), Exhausted(loop, lambda index: 0.25), PLAN, clock=loop.now_ns)

        result = run_virtual(main)

        assert result.exhausted == "ran out of open files"
        assert not result.interrupted
        assert [record.status for record in result.records] == ["ok"] * 28 + ["cancelled"] * 3
        assert {record.error for record in result.records[28:]} == {"ran out of open files"}
        assert result.window.measure_end_ns - result.window.load_start_ns == pytest.approx(3e9, abs=MICROSECOND)

    @pytest.mark.parametrize("coordinated", [False, True])
    def test_garbage_is_collected_before_the_start_is_fixed(self, coordinated: bool) -> None:
        collected: list[int] = []

        def collecting(phase: str, info: dict[str, int]) -> None:
            if phase == "start" and info["generation"] == 2:
                collected.append(1)

        async def main(loop: VirtualTimeLoop) -> list[int]:
            seen: list[int] = []

            def clock() -> int:
                seen.append(len(collected))
                return loop.now_ns()

            async def begin() -> int:
                seen.append(len(collected))
                return loop.now_ns() + 1_000_000

            target = TimedTarget(loop, lambda index: 0.1)
            await generate(open_schedule(), target, PLAN, clock=clock, begin=begin if coordinated else None)
            return seen

        gc.callbacks.append(collecting)
        try:
            seen = run_virtual(main)
        finally:
            gc.callbacks.remove(collecting)
        assert seen[0] == 1
        assert len(collected) == 1

    def test_the_garbage_collector_is_as_it_was(self) -> None:
        before = gc.get_threshold()
        load(open_schedule(), lambda index: 0.1)

        assert gc.get_threshold() == before
        assert gc.get_freeze_count() == 0


class TestReport:
    def test_progress_is_told_four_times_a_second(self) -> None:
        seen: list[LoadProgress] = []
        load(open_schedule(), lambda index: 1.05, progress=seen.append)

        assert 40 <= len(seen) <= 60
        assert [moment.elapsed_s for moment in seen] == sorted(moment.elapsed_s for moment in seen)
        assert {moment.phase for moment in seen} == {"warmup", "measure", "drain"}
        middle = next(moment for moment in seen if moment.elapsed_s >= 5.0)
        assert middle.outstanding in (10, 11)
        assert middle.sent == middle.ok + middle.outstanding
        assert middle.total_s == 10.0

    def test_cpu_share_is_taken_over_the_measurement_window(self) -> None:
        async def main(loop: VirtualTimeLoop) -> LoadResult:
            def cpu_clock() -> int:  # busy all through the warm-up, a quarter of the time after it
                warm_ns = 2_020_000_000
                return min(loop.now_ns(), warm_ns) + max(loop.now_ns() - warm_ns, 0) // 4

            target = TimedTarget(loop, lambda index: 0.1)
            return await generate(open_schedule(), target, PLAN, clock=loop.now_ns, cpu_clock=cpu_clock)

        assert run_virtual(main).generator.cpu_share == pytest.approx(0.25, abs=1e-3)
