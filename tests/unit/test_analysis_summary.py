"""The summary: validity first, rates over the window alone, null instead of what cannot be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muai_lab.analysis import load_run, summarise
from muai_lab.analysis.attainment import met, misses
from muai_lab.analysis.summary_schema import Summary, read_summary
from muai_lab.errors import RunError
from muai_lab.report.wording import headline
from muai_lab.slo import Slo, slo_of
from tests.unit.synthetic_run import record, simulated, write_run


def steady_rows(count: int = 60, *, ttft: float = 0.2) -> list[dict[str, Any]]:
    return [record(i, due=i * 0.1, sent=i * 0.1, chunks=[i * 0.1 + ttft, i * 0.1 + ttft + 0.1]) for i in range(count)]


def summary_of(path: Path, rows: list[dict[str, Any]], **written: Any) -> Summary:
    return summarise(load_run(write_run(path, rows, **written)))


def test_throughput_counts_what_arrived_in_the_window(tmp_path: Path) -> None:
    rows = [
        record(0, due=0.5, sent=0.5, chunks=[1.5, 2.5], phase="warmup"),  # second token in the window
        record(1, due=3.0, sent=3.0, chunks=[4.0, 5.0, 6.0]),  # all of it
        record(2, due=11.0, sent=11.0, chunks=[11.5, 13.0, 14.0]),  # first token only; finished in the drain
        record(3, due=5.0, sent=5.0, chunks=[6.0, 7.0], status="error"),  # failed: its tokens are lost
    ]

    found = summary_of(tmp_path, rows, measure=(2.0, 12.0), drain_end=14.0)

    assert found.requests.due == 3
    assert found.requests.ok == 2
    assert found.requests.error == 1
    assert found.throughput.offered_rps == pytest.approx(0.3)
    assert found.throughput.answered_rps == pytest.approx(0.2)
    assert found.throughput.requests_per_s.value == pytest.approx(0.2)
    assert found.throughput.output_tokens_per_s.value == pytest.approx(0.5)


@given(st.lists(st.tuples(st.floats(0.0, 12.0), st.floats(0.1, 6.0), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_of_what_was_offered_never_more_was_answered(tmp_path: Path, asked: list[tuple[float, float, bool]]) -> None:
    # Given a window into which answers to the warm-up's requests fall
    rows = [
        record(index, due=due, sent=due, chunks=[due + takes] if good else [], status="ok" if good else "error")
        for index, (due, takes, good) in enumerate(asked)
    ]

    throughput = summary_of(tmp_path, rows, measure=(4.0, 12.0), drain_end=20.0).throughput

    assert 0.0 <= throughput.answered_rps <= throughput.offered_rps


def test_the_headline_counts_the_same_requests_on_both_sides_of_of(tmp_path: Path) -> None:
    rows = [record(index, due=index * 0.5, sent=index * 0.5, chunks=[index * 0.5 + 3.0]) for index in range(12)]

    found = summary_of(tmp_path, rows, measure=(2.0, 12.0), drain_end=12.0)

    assert found.throughput.requests_per_s.value > found.throughput.offered_rps
    assert "answered 0.800 of the 0.800 requests per second that were offered, and completed 1.20 per second" in (
        headline(found)
    )


def test_tokens_without_counts_per_chunk_are_shared_out(tmp_path: Path) -> None:
    # ten tokens in four chunks, three of them in the window
    row = record(due=5.0, sent=5.0, chunks=[6.0, 7.0, 8.0, 11.0], output_tokens=10) | {"chunk_tokens": None}

    found = summary_of(tmp_path, [row], drain_end=11.0)

    assert found.throughput.output_tokens_per_s.value == pytest.approx(0.75)


def test_an_answer_without_chunks_counts_at_its_end(tmp_path: Path) -> None:
    row = record(due=5.0, sent=5.0, output_tokens=10) | {"stream_end_ns": None, "chunk_t_ns": None}
    row["stream_end_ns"] = row["sent_ns"] + 1_000_000_000

    throughput = summary_of(tmp_path, [row]).throughput

    assert throughput.output_tokens_per_s.value == pytest.approx(1.0)
    assert throughput.requests_per_s.value == pytest.approx(0.1)


def test_a_system_over_capacity_shows_its_capacity(tmp_path: Path) -> None:
    found = summarise(load_run(simulated(tmp_path, rate=45.0, slots=8)))

    assert found.throughput.offered_rps > 40
    assert found.throughput.requests_per_s.value < 25
    assert found.validity.verdict == "not steady"
    assert not found.validity.valid


@pytest.mark.parametrize(
    ("written", "verdict", "reason"),
    [
        ({"status": "partial", "manifest": {"error": "interrupted"}}, "partial", "interrupted"),
        ({"status": "failed", "manifest": {"error": "the server died"}}, "failed", "the server died"),
        (
            {"manifest": {"generator": {"verdict": "client_saturated", "reason": "send lag p99 80 ms"}}},
            "client_saturated",
            "send lag p99 80 ms",
        ),
    ],
)
def test_the_verdict_names_what_is_wrong(tmp_path: Path, written: Any, verdict: str, reason: str) -> None:
    validity = summary_of(tmp_path, steady_rows(), **written).validity

    assert (validity.verdict, validity.valid, validity.reason) == (verdict, False, reason)


def test_a_good_run_is_valid(tmp_path: Path) -> None:
    validity = summary_of(tmp_path, steady_rows(), measure=(0.0, 6.0)).validity

    assert validity.valid
    assert validity.steadiness == "steady"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "no request was due in the measurement window"),
        ([record(0, status="error")], "none of 1 request succeeded"),
    ],
)
def test_nothing_measured_is_not_valid(tmp_path: Path, rows: list[dict[str, Any]], reason: str) -> None:
    found = summary_of(tmp_path, rows)

    assert found.validity.verdict == "nothing measured"
    assert found.validity.reason == reason
    assert all(entry is None or entry.samples for entry in found.latency.values())
    assert found.latency["ttft_s"] is None


def test_too_few_samples_are_said_and_the_quantile_is_null(tmp_path: Path) -> None:
    found = summary_of(tmp_path, steady_rows(60))

    assert found.latency["ttft_s"].p50.value == pytest.approx(0.2)
    assert found.latency["ttft_s"].p99 is None
    assert any("p95: 100, p99: 500" in warning for warning in found.validity.warnings)


def test_failures_are_pointed_out_next_to_latencies(tmp_path: Path) -> None:
    rows = steady_rows(60)
    rows[3] |= record(3, due=0.3, sent=0.3, status="timeout")

    warnings = summary_of(tmp_path, rows).validity.warnings

    assert "1 of 60 requests in the window failed; latencies are those of the successful ones" in warnings


def test_the_document_is_json_without_nan(tmp_path: Path) -> None:
    rows = [*steady_rows(20), record(20, due=2.1, sent=None, status="rejected")]
    scraped = [(float(t), "muai_running_sequences", {}, float("nan")) for t in range(10)]

    text = json.dumps(summary_of(tmp_path, rows, server_metrics=scraped).as_document(), allow_nan=False)

    assert json.loads(text)["server"]["running_mean"] is None


def test_the_document_is_read_back_as_the_same_summary(tmp_path: Path) -> None:
    written = {"config": {"slo": {"ttft_ms": 500}}, "server_metrics": [(1.0, "muai_running_sequences", {}, 4.0)]}
    found = summary_of(tmp_path, steady_rows(), measure=(0.0, 6.0), **written)

    document = json.loads(json.dumps(found.as_document()))

    assert read_summary(document) == found
    assert list(document) == [
        "schema_version", "validity", "identity", "window", "requests", "visibility", "asked", "throughput", "latency",
        "cached_share", "breakdown", "slo", "server", "generator", "precision",
    ]  # fmt: skip
    assert list(document["latency"]["ttft_s"]["p50"]) == ["value", "low", "high", "needs_s"]
    assert document["latency"]["ttft_s"]["p99"] is None


def test_a_document_of_an_earlier_version_lacks_fields_and_is_read(tmp_path: Path) -> None:
    document = summary_of(tmp_path, steady_rows(), config={"slo": {"ttft_ms": 500}}).as_document()
    for section, key in (
        ("validity", "trends"),
        ("throughput", "answered_rps"),
        ("identity", "prompts"),
        ("slo", "missed"),
    ):
        del document[section][key]
    del document["precision"], document["visibility"]

    found = read_summary(document)

    assert found is not None
    assert (found.validity.trends, found.throughput.answered_rps, found.identity.prompts) == ((), None, None)
    assert (found.slo.missed, found.precision, found.visibility) == (None, None, None)


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"throughput": "fast"}])
def test_a_document_that_this_version_does_not_understand_is_no_summary(tmp_path: Path, change: dict[str, Any]) -> None:
    assert read_summary(summary_of(tmp_path, steady_rows()).as_document() | change) is None


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"manifest\.json does not fit the summary: .*identity\.seed"):
        summary_of(tmp_path, steady_rows(), manifest={"seed": "often"})


def test_the_same_records_give_the_same_summary(tmp_path: Path) -> None:
    run = load_run(simulated(tmp_path, duration=6.0))

    assert json.dumps(summarise(run).as_document()) == json.dumps(summarise(run).as_document())


def test_the_servers_own_figures_are_those_of_the_window(tmp_path: Path) -> None:
    names = ("muai_running_sequences", "muai_waiting_requests")
    scraped = [(float(t), name, {}, 99.0 if t < 2 or t >= 8 else 4.0) for t in range(10) for name in names]

    server = summary_of(tmp_path, steady_rows(), measure=(2.0, 8.0), server_metrics=scraped).server

    assert (server.running_mean, server.waiting_mean, server.waiting_max) == (4.0, 4.0, 4.0)
    assert server.batch_mean is None


def test_without_an_slo_there_is_no_goodput(tmp_path: Path) -> None:
    assert summary_of(tmp_path, steady_rows()).slo is None


def test_attainment_counts_every_failure_as_a_miss(tmp_path: Path) -> None:
    # of 10 due: 6 in time, 1 too late, and an error, a timeout and a rejection
    rows = [*steady_rows(6), record(6, due=1.0, sent=1.0, chunks=[1.9, 2.0])]
    rows += [
        record(7 + i, due=2.0, sent=2.0, status=status) for i, status in enumerate(("error", "timeout", "rejected"))
    ]

    slo = summary_of(tmp_path, rows, config={"slo": {"ttft_ms": 500}}).slo

    assert slo.attainment.value == pytest.approx(0.6)
    assert slo.goodput_rps.value == pytest.approx(0.6)
    assert slo.missed == {"failed": 3, "ttft": 1, "not_judgeable": 0}
    assert slo.met is False


def test_the_slo_of_an_open_loop_counts_the_clients_lag(tmp_path: Path) -> None:
    rows = [record(due=1.0, sent=1.4, chunks=[1.6, 1.7])]

    requests = load_run(write_run(tmp_path, rows)).requests

    assert met(requests, Slo(ttft_ms=500)).tolist() == [False]
    assert met(requests, Slo(ttft_ms=700)).tolist() == [True]


def test_tpot_does_not_apply_to_one_token_and_a_first_token_that_was_not_seen_is_not_judgeable(tmp_path: Path) -> None:
    rows = [record(0, sent=0.0, chunks=[0.1]), record(1, sent=0.0, chunks=[])]

    found = misses(load_run(write_run(tmp_path, rows)).requests, Slo(ttft_ms=500, tpot_ms=1))

    assert found["tpot"].tolist() == [False, False]
    assert found["ttft"].tolist() == [False, False]
    assert found["not_judgeable"].tolist() == [False, True]


@pytest.mark.parametrize("section", [None, {}, {"quantile": 0.99}, {"ttft_ms": None, "quantile": 0.9}])
def test_no_bound_is_no_slo(section: Any) -> None:
    assert slo_of({"slo": section}) is None


def test_send_lag_is_that_of_all_requests_not_only_of_the_successful(tmp_path: Path) -> None:
    rows = steady_rows(20)
    rows.append(record(20, due=2.0, sent=3.0, status="error"))

    assert summary_of(tmp_path, rows).latency["send_lag_s"].max == pytest.approx(1.0)


def test_the_engine_that_served_and_the_skipped_ones_are_named(tmp_path: Path) -> None:
    identity = summary_of(tmp_path, steady_rows()).identity

    assert identity.engine == "pytorch"
    assert identity.skipped_engines[0][0] == "vllm"
