"""When the load generator calls itself the bottleneck."""

from __future__ import annotations

import pytest

from muai_lab.load.records import RequestRecord, Window
from muai_lab.load.self_report import report_on_generator

WINDOW = Window(0, 1_000_000_000, 11_000_000_000, 12_000_000_000)
MS = 1_000_000


def requests(lag_ms: float, ttft_ms: float | None = 50.0, count: int = 200, due_s: float = 2.0) -> list[RequestRecord]:
    records = []
    for index in range(count):
        record = RequestRecord(index, max_tokens=1, intended_ns=int(due_s * 1e9))
        record.sent_ns = record.due_ns + int(lag_ms * MS)
        if ttft_ms is not None:
            record.chunk_t_ns.append(record.sent_ns + int(ttft_ms * MS))
        records.append(record)
    return records


def test_a_punctual_idle_generator_is_ok() -> None:
    report = report_on_generator(requests(0.5), WINDOW, 0.3)

    assert (report.verdict, report.reason) == ("ok", None)
    assert report.send_lag_p50_s == pytest.approx(0.0005)
    assert report.send_lag_max_s == pytest.approx(0.0005)


def test_lag_beyond_the_limit_is_saturation() -> None:
    report = report_on_generator(requests(6.0), WINDOW, 0.3)

    assert report.verdict == "client_saturated"
    assert report.reason == "p99 of the send lag is 6.0 ms, more than 5.0 ms"


def test_a_slow_server_tolerates_a_proportionally_later_client() -> None:
    assert report_on_generator(requests(6.0, ttft_ms=200.0), WINDOW, 0.3).verdict == "ok"
    assert report_on_generator(requests(11.0, ttft_ms=200.0), WINDOW, 0.3).verdict == "client_saturated"


def test_the_p99_decides_and_not_the_worst_request() -> None:
    records = requests(0.5, count=999) + requests(500.0, count=1)
    report = report_on_generator(records, WINDOW, 0.3)

    assert report.verdict == "ok"
    assert report.send_lag_max_s == pytest.approx(0.5)


def test_a_full_core_is_saturation_even_when_nothing_is_late() -> None:
    report = report_on_generator(requests(0.0), WINDOW, 0.97)

    assert report.verdict == "client_saturated"
    assert report.reason == "the load generator used 97% of a core, more than 90%"


def test_only_requests_due_in_the_window_are_judged() -> None:
    report = report_on_generator(requests(400.0, due_s=0.5) + requests(0.1), WINDOW, 0.3)

    assert report.verdict == "ok"


def test_lag_counts_without_any_answer() -> None:
    assert report_on_generator(requests(6.0, ttft_ms=None), WINDOW, 0.3).verdict == "client_saturated"


def test_without_requests_there_is_no_lag() -> None:
    report = report_on_generator([], WINDOW, None)

    assert (report.send_lag_p50_s, report.send_lag_p99_s, report.cpu_share, report.verdict) == (None, None, None, "ok")
