"""When the load generator calls its own part of the headline too large, and what it names as the reason."""

from __future__ import annotations

import numpy as np
import pytest

from muai_lab.load.heartbeat import LoopTiming
from muai_lab.load.machine_load import MachineLoad
from muai_lab.load.self_report import GeneratorReport, WorkerReport, report_on_generator, report_on_generators
from muai_lab.request_record import RequestRecord
from muai_lab.window import Window

WINDOW = Window(0, 1_000_000_000, 11_000_000_000, 12_000_000_000)
MS = 1_000_000
BUSY = MachineLoad(2, own=0.1, run=0.3, others=1.6, named=(("stress", 1.5),))


def requests(
    lag_ms: float = 0.1, ttft_ms: float | None = 50.0, count: int = 200, due_s: float = 2.0, *, closed: bool = False
) -> list[RequestRecord]:
    records = []
    for index in range(count):
        due_ns = int(due_s * 1e9)
        times = {"released_ns": due_ns} if closed else {"intended_ns": due_ns}
        record = RequestRecord(index, max_tokens=1, **times)
        record.sent_ns = record.due_ns + int(lag_ms * MS)
        if ttft_ms is not None:
            record.chunk_t_ns.append(record.sent_ns + int(ttft_ms * MS))
            record.end("ok", record.chunk_t_ns[0])
        else:
            record.end("error", record.sent_ns)
        records.append(record)
    return records


def late(by_ms: float, *, waited: float | None = 0.9, cpu: float = 0.05, share: float = 1.0) -> LoopTiming:
    """A loop of which that share of the beats is late."""
    beats = np.zeros(1000)
    beats[: round(share * 1000)] = by_ms / 1e3
    return LoopTiming(beats, cpu_share=cpu, wait_share=0.4, waited_share=waited)


def judge(records: list[RequestRecord], timing: LoopTiming, *, open_loop: bool = True) -> GeneratorReport:
    return report_on_generator(records, WINDOW, timing, open_loop=open_loop, machine=lambda: BUSY)


def test_a_punctual_idle_generator_is_ok() -> None:
    report = judge(requests(0.5), late(0.1))

    assert (report.verdict, report.reason, report.advice, report.machine) == ("ok", None, None, None)
    assert report.send_lag_p50_s == pytest.approx(0.0005)
    assert report.send_lag_max_s == pytest.approx(0.0005)
    assert report.lateness_p99_s == pytest.approx(0.0001)


@pytest.mark.parametrize("open_loop", [True, False])
def test_a_thread_that_waits_for_others_is_a_busy_machine_in_both_loops(open_loop: bool) -> None:
    report = judge(requests(ttft_ms=20.0, closed=not open_loop), late(3.0), open_loop=open_loop)

    assert report.verdict == "machine_busy"
    assert report.reason is not None
    assert "of the median TTFT" in report.reason
    assert "waited for a processor 40% of the time" in report.reason
    assert "other programs used 1.6 of 2 cores (stress 1.5) and the server under test, on the same" in report.reason
    assert "send lag" not in report.reason
    assert report.advice == "end the other programs, or run the load generator on cores or a machine of its own"


def test_a_thread_that_is_late_by_its_own_work_is_a_saturated_client() -> None:
    report = judge(requests(ttft_ms=20.0), late(3.0, waited=0.1, cpu=0.7))

    assert report.verdict == "client_saturated"
    assert report.reason is not None
    assert report.reason.endswith("it used 70% of a core")
    assert report.advice == "raise load.processes, or lower the load"


def test_without_scheduling_statistics_lateness_is_judged_all_the_same() -> None:
    assert judge(requests(ttft_ms=20.0), late(3.0, waited=None, cpu=0.5)).verdict == "client_saturated"


def test_a_generator_with_little_work_is_not_told_to_make_more_processes() -> None:
    idle_machine = MachineLoad(cores=2, own=0.05, run=0.1, others=0.1, named=())

    busy = judge(requests(ttft_ms=20.0), late(3.0, waited=0.1, cpu=0.05))
    quiet = report_on_generator(
        requests(ttft_ms=20.0), WINDOW, late(3.0, waited=0.1, cpu=0.05), open_loop=True, machine=lambda: idle_machine
    )

    assert busy.verdict == "machine_busy"
    assert "used 5% of a core: other programs used 1.6 of 2 cores" in str(busy.reason)
    assert quiet.verdict == "client_saturated"
    assert "more processes would not help" in str(quiet.advice)


@pytest.mark.parametrize(
    ("lateness_ms", "ttft_ms", "verdict"),
    [(0.4, 5.0, "ok"), (0.6, 5.0, "machine_busy"), (2.4, 100.0, "ok"), (2.6, 100.0, "machine_busy")],
)
def test_a_millisecond_or_five_percent_is_tolerated(lateness_ms: float, ttft_ms: float, verdict: str) -> None:
    assert judge(requests(0.0, ttft_ms=ttft_ms), late(lateness_ms)).verdict == verdict


def test_the_lag_of_sending_counts_in_the_open_loop_only() -> None:
    assert judge(requests(6.0), late(0.0)).verdict == "client_saturated" or judge(requests(6.0), late(0.0)).reason
    assert judge(requests(2.0, closed=True), late(0.0), open_loop=False).verdict == "ok"


def test_rare_lateness_marks_the_tail_and_leaves_the_run_valid() -> None:
    report = judge(
        requests(0.0, ttft_ms=20.0, count=940) + requests(0.0, ttft_ms=30.0, count=60), late(10.0, share=0.03)
    )

    assert report.verdict == "ok"
    assert "p99" in report.added["ttft_s"].marked
    assert "p50" not in report.added["ttft_s"].marked
    assert report.machine == BUSY


def test_a_closed_loop_that_loses_more_than_five_percent_of_its_cycles_is_not_ok() -> None:
    report = judge(requests(ttft_ms=1000.0, lag_ms=60.0, closed=True), late(0.0, waited=0.0), open_loop=False)

    assert report.cycle_share == pytest.approx(0.06 / 1.06)
    assert report.verdict == "client_saturated"
    assert report.reason is not None
    assert "up to 6% of the time of each request, which the throughput lacks" in report.reason


def test_a_full_core_is_saturation_even_when_nothing_is_late() -> None:
    report = judge(requests(0.0), late(0.0, cpu=0.97))

    assert report.verdict == "client_saturated"
    assert report.reason == "the load generator used 97% of a core, more than 90%"


def test_new_connections_for_every_request_are_named_as_the_reason() -> None:
    records = requests(12.0)
    for record in records:
        record.connect_ns = 11 * MS
    report = judge(records, late(0.1))

    assert report.reason is not None
    assert "200 of 200 requests made a new connection first, which took 11.0 ms" in report.reason
    assert (report.advice or "").startswith("let the server keep connections alive")


def test_only_requests_due_in_the_window_are_judged() -> None:
    assert judge(requests(400.0, due_s=0.5) + requests(0.1), late(0.1)).verdict == "ok"


def test_without_answers_there_is_nothing_to_judge() -> None:
    report = report_on_generator([], WINDOW, open_loop=True)

    assert (report.send_lag_p50_s, report.send_lag_p99_s, report.cpu_share, report.verdict) == (None, None, None, "ok")
    assert judge(requests(6.0, ttft_ms=None), late(3.0)).added == {}


def test_of_several_generators_the_worst_decides() -> None:
    def worker(name: str, timing: LoopTiming) -> tuple[WorkerReport, GeneratorReport]:
        own = judge(requests(ttft_ms=20.0), timing)
        return WorkerReport(name, 200, own.cpu_share, own.send_lag_p99_s, own.verdict, own.reason), own

    workers = [
        worker("a", late(0.1)),
        worker("b", late(3.0, waited=0.0, cpu=0.8)),
        worker("c", late(5.0)),
    ]
    report = report_on_generators(requests(ttft_ms=20.0), WINDOW, workers)

    assert report.verdict == "client_saturated"
    assert report.reason is not None
    assert report.reason.startswith("b: ")
    assert "; c: " in report.reason
    assert report.cpu_share == 0.8
    assert report.added["ttft_s"].figures_s["p50"] == workers[2][1].added["ttft_s"].figures_s["p50"]
    assert "p50" in report.added["ttft_s"].marked
    assert [entry.name for entry in report.workers] == ["a", "b", "c"]
