"""Sharing one load between several generators, and putting their results together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.load.clock_offset import ClockOffset
from muai_lab.load.generator import LoadResult
from muai_lab.load.heartbeat import LoopTiming
from muai_lab.load.merge import Part, merge
from muai_lab.load.offer import CHUNKS_PER_S, REQUESTS_PER_S, processes_for
from muai_lab.load.partition import partition, share
from muai_lab.load.plan import LoadPlan
from muai_lab.load.self_report import GeneratorReport, report_on_generator
from muai_lab.request_record import RequestRecord
from muai_lab.window import Window
from muai_lab.workload.schedule import Schedule, ScheduledRequest

PLAN = LoadPlan(warmup_s=0.0, duration_s=10.0, drain_s=1.0, request_timeout_s=1.0, concurrency=7)
SECOND = 1_000_000_000


def schedule_of(turns: list[int], *, rate: float = 10.0, max_tokens: int = 4) -> Schedule:
    """One entry for each start: how many turns its session has; 1 is a request without a session."""
    requests: list[ScheduledRequest] = []
    for number, count in enumerate(turns):
        for turn in range(count):
            requests.append(
                ScheduledRequest(
                    index=len(requests),
                    intended_s=None if turn else number / rate,
                    prompt="hello",
                    prompt_ids=None,
                    prompt_tokens=1,
                    max_tokens=max_tokens,
                    session=None if count == 1 else number,
                    turn=None if count == 1 else turn,
                )
            )
    return Schedule.of(requests)


def record(index: int, due_s: float, lag_s: float = 0.0, base_ns: int = 0) -> RequestRecord:
    made = RequestRecord(index, max_tokens=1, intended_ns=base_ns + round(due_s * SECOND))
    made.sent_ns = made.due_ns + round(lag_s * SECOND)
    made.chunk_t_ns.append(made.sent_ns + SECOND // 100)
    made.chunk_tokens.append(1)
    made.end("ok", made.sent_ns + SECOND // 50)
    return made


def result(
    records: list[RequestRecord], *, end_s: float = 10.0, cpu_share: float = 0.2, base_ns: int = 0, note: str = "n"
) -> LoadResult:
    timing = LoopTiming(np.zeros(100), cpu_share=cpu_share)
    window = Window(base_ns, base_ns, base_ns + round(end_s * SECOND), base_ns + round((end_s + 1) * SECOND))
    return LoadResult(
        tuple(records), window, report_on_generator(records, window, timing, open_loop=True), False, (note,)
    )


class TestPartition:
    @given(st.lists(st.integers(1, 4), min_size=1, max_size=20), st.integers(1, 6))
    def test_the_parts_are_the_schedule_and_no_session_is_split(self, turns: list[int], count: int) -> None:
        schedule = schedule_of(turns)

        parts = partition(schedule, count)

        dealt = [[(request.index, request.intended_s, request.session) for request in part] for part in parts]
        assert sorted(row for part in dealt for row in part) == [
            (request.index, request.intended_s, request.session) for request in schedule
        ]
        assert all(part == sorted(part) and part for part in dealt)
        sessions = [{row[2] for row in part if row[2] is not None} for part in dealt]
        assert sum(map(len, sessions)) == len(set().union(*sessions))

    def test_starts_are_dealt_in_turn(self) -> None:
        parts = partition(schedule_of([1, 1, 3, 1, 2]), 3)

        assert [[request.index for request in part] for part in parts] == [[0, 5], [1, 6, 7], [2, 3, 4]]

    def test_slots_of_a_closed_loop_are_dealt_out_entirely(self) -> None:
        assert [share(PLAN, part, 3).concurrency for part in range(3)] == [3, 2, 2]


class TestHowMany:
    def test_a_slow_load_needs_one(self) -> None:
        assert processes_for(schedule_of([1] * 100), PLAN, cores=64) == 1

    def test_a_fast_one_needs_as_many_as_its_requests_or_chunks_do(self) -> None:
        count = int(REQUESTS_PER_S * 10)
        assert processes_for(schedule_of([1] * (2 * count), max_tokens=1), PLAN, cores=64) == 2

        tokens = int(CHUNKS_PER_S * 10 / 100)
        assert processes_for(schedule_of([1] * 300, max_tokens=tokens), PLAN, cores=64) == 3

    def test_half_of_the_cores_stay_free_for_the_server(self) -> None:
        assert processes_for(schedule_of([1] * 1000, max_tokens=10_000), PLAN, cores=8) == 4
        assert processes_for(schedule_of([1] * 1000, max_tokens=10_000), PLAN, cores=1) == 1


class TestMerge:
    def test_records_come_in_the_order_in_which_they_were_due(self) -> None:
        merged = merge([Part("a", result([record(0, 0.0), record(2, 2.0)])), Part("b", result([record(1, 1.0)]))])

        assert [entry.index for entry in merged.records] == [0, 1, 2]
        assert merged.notes == ("n",)
        assert [worker.name for worker in merged.generator.workers] == ["a", "b"]
        assert [worker.requests for worker in merged.generator.workers] == [2, 1]

    def test_times_of_another_machine_are_put_on_our_clock(self) -> None:
        ahead_ns = 5_000 * SECOND
        ours, theirs = record(0, 1.0), record(1, 1.0, base_ns=ahead_ns)
        for one in (ours, theirs):  # a final usage revealed a token that no chunk carried
            one.unseen_tokens, one.unseen_ns = 1, one.stream_end_ns

        merged = merge(
            [
                Part("here", result([ours])),
                Part("there", result([theirs], base_ns=ahead_ns), ClockOffset(ahead_ns, 40_000)),
            ]
        )

        first, second = merged.records
        for name in ("intended_ns", "sent_ns", "first_content_ns", "last_token_ns", "stream_end_ns"):
            assert getattr(first, name) == getattr(second, name)
        assert merged.window == Window(0, 0, 10 * SECOND, 11 * SECOND)
        there = merged.generator.workers[1]
        assert (there.clock_offset_s, there.clock_error_s) == (5_000.0, 40e-6)

    def test_the_window_ends_with_the_first_that_had_no_more_to_send(self) -> None:
        merged = merge([Part("a", result([record(0, 1.0)], end_s=4.0)), Part("b", result([record(1, 1.0)], end_s=9.0))])

        assert (merged.window.measure_end_ns, merged.window.drain_end_ns) == (4 * SECOND, 10 * SECOND)

    def test_the_worst_generator_decides(self) -> None:
        good = [record(index, index / 1000) for index in range(1000)]
        late = [record(1000, 0.5, lag_s=0.5)]  # too few to show in the p99 of all
        merged = merge([Part("a", result(good)), Part("b", result(late, cpu_share=0.5))])

        report: GeneratorReport = merged.generator
        assert report.verdict == "client_saturated"
        assert report.reason is not None
        assert report.reason.startswith("b: the load generator's own delays can be up to 500.0 ms of the median TTFT")
        assert report.cpu_share == 0.5

    def test_what_was_lost_is_named(self) -> None:
        merged = merge([Part("a", result([record(0, 1.0)]))], lost=["b was killed by SIGKILL"])

        assert merged.lost == ("b was killed by SIGKILL",)
        assert "b was killed by SIGKILL: its requests are missing" in merged.notes
