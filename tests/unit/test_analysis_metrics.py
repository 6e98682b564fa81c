"""Each metric by an example worked out by hand, through the same files that a run writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.analysis import METRICS, load_run
from muai_lab.analysis.metrics import itl
from muai_lab.report.reference_tables import with_tables
from tests.unit.synthetic_run import record, write_run


def first_request(path: Path, **fields: Any) -> Any:
    return load_run(write_run(path, [record(**fields)])).requests.iloc[0]


def test_times_of_an_open_loop_request(tmp_path: Path) -> None:
    # due at 1.0, written 20 ms late, tokens at 1.5, 1.6, 1.8
    request = first_request(tmp_path, due=1.0, sent=1.02, chunks=[1.5, 1.6, 1.8])

    assert request["send_lag_s"] == pytest.approx(0.02)
    assert request["ttft_s"] == pytest.approx(0.48)
    assert request["ttft_from_intended_s"] == pytest.approx(0.5)
    assert request["e2e_s"] == pytest.approx(0.78)
    assert request["e2e_from_intended_s"] == pytest.approx(0.8)
    assert request["tpot_s"] == pytest.approx(0.3 / 2)


def test_a_closed_loop_request_has_no_intended_time(tmp_path: Path) -> None:
    request = first_request(tmp_path, closed=True, due=1.0, sent=1.02, chunks=[1.5, 1.6])

    assert request["due_s"] == pytest.approx(1.0)
    assert request["ttft_s"] == pytest.approx(0.48)
    assert np.isnan(request["ttft_from_intended_s"])
    assert np.isnan(request["e2e_from_intended_s"])
    assert np.isnan(request["send_lag_s"])


@pytest.mark.parametrize(
    ("chunks", "chunk_tokens", "reason"),
    [
        ([1.0], [1], "one token has nothing after it"),
        ([1.0], [8], "eight tokens in one chunk show no time between them"),
        ([], [], "no token came"),
    ],
)
def test_tpot_is_missing_never_zero(tmp_path: Path, chunks: list[float], chunk_tokens: list[int], reason: str) -> None:
    assert np.isnan(first_request(tmp_path, chunks=chunks, chunk_tokens=chunk_tokens)["tpot_s"]), reason


def test_tpot_counts_tokens_not_chunks(tmp_path: Path) -> None:
    # 2 + 4 tokens in two chunks, 0.8 s apart: the first two belong to the time to first token
    request = first_request(tmp_path, chunks=[1.0, 1.8], chunk_tokens=[2, 4])

    assert request["tpot_s"] == pytest.approx(0.2)


def test_the_clients_count_stands_in_for_a_missing_usage(tmp_path: Path) -> None:
    row = record(chunks=[1.0, 2.0]) | {"output_tokens": None, "client_output_tokens": 3, "decode_tokens": 2}

    request = load_run(write_run(tmp_path, [row])).requests.iloc[0]

    assert request["tokens"] == 3
    assert request["tpot_s"] == pytest.approx(0.5)


def test_tpot_is_missing_when_nobody_counted(tmp_path: Path) -> None:
    row = record(chunks=[1.0, 2.0]) | {"output_tokens": None, "chunk_tokens": None, "decode_tokens": None}

    assert np.isnan(load_run(write_run(tmp_path, [row])).requests.iloc[0]["tpot_s"])


def test_a_request_that_was_never_sent_has_no_latency(tmp_path: Path) -> None:
    request = first_request(tmp_path, sent=None, status="timeout")

    for metric in METRICS:
        if metric.compute is not None:
            assert np.isnan(request[metric.column]), metric.name


def test_tokens_gives_one_row_per_gap_and_marks_merged_chunks(tmp_path: Path) -> None:
    rows = [
        record(0, chunks=[1.0, 1.1, 1.4], chunk_tokens=[1, 1, 3]),
        record(1, chunks=[2.0]),
        record(2, status="error"),
        record(3, chunks=[3.0, 3.2]),
    ]

    gaps = load_run(write_run(tmp_path, rows)).tokens()

    assert gaps["index"].tolist() == [0, 0, 3]
    assert gaps["itl_s"].tolist() == pytest.approx([0.1, 0.3, 0.2])
    assert gaps["tokens"].tolist() == [1, 3, 1]
    assert gaps["merged"].tolist() == [False, True, False]
    assert gaps["t_s"].tolist() == pytest.approx([1.1, 1.4, 3.2])


def test_gaps_without_token_counts_are_not_marked(tmp_path: Path) -> None:
    row = record(chunks=[1.0, 1.1, 1.4], output_tokens=6) | {"chunk_tokens": None}

    gaps = load_run(write_run(tmp_path, [row])).tokens()

    assert gaps["itl_s"].tolist() == pytest.approx([0.1, 0.3])
    assert gaps["tokens"].isna().all()
    assert not gaps["merged"].any()


@given(st.lists(st.integers(min_value=1, max_value=10**9), min_size=1, max_size=30))
def test_gaps_of_one_request_add_up_to_its_decode_time(gaps_ns: list[int]) -> None:
    start = 2**60  # where float64 no longer holds single nanoseconds
    times = np.cumsum(np.array([start, *gaps_ns], dtype=np.int64))

    gaps = itl(np.zeros(times.size, dtype=np.int64), times)

    assert gaps.sum() == pytest.approx(sum(gaps_ns) / 1e9)
    assert (gaps > 0).all()


@given(
    st.lists(st.integers(min_value=1_000, max_value=10**8), min_size=2, max_size=40).map(np.array),
)
def test_with_one_token_per_chunk_tpot_is_the_mean_gap(gaps_ns: np.ndarray[Any, Any]) -> None:
    times = np.concatenate([[0], np.cumsum(gaps_ns)]).astype(np.int64)

    tpot = (times[-1] - times[0]) / 1e9 / (times.size - 1)

    assert itl(np.zeros(times.size, dtype=np.int64), times).mean() == pytest.approx(tpot)


def test_from_intended_is_lag_plus_from_sent(tmp_path: Path) -> None:
    rows = [record(i, due=i * 0.1, sent=i * 0.1 + 0.003 * i, chunks=[i * 0.1 + 0.5, i * 0.1 + 0.9]) for i in range(20)]

    requests = load_run(write_run(tmp_path, rows)).requests

    for name in ("ttft", "e2e"):
        total = requests["send_lag_s"] + requests[f"{name}_s"]
        assert requests[f"{name}_from_intended_s"].to_numpy() == pytest.approx(total.to_numpy())


def test_nanoseconds_survive_a_long_uptime(tmp_path: Path) -> None:
    late = 2**60
    row = record(chunks=[1.0, 2.0]) | {"sent_ns": late, "first_content_ns": late + 1, "intended_ns": late}
    row |= {"last_token_ns": late + 2, "stream_end_ns": late + 2}

    run = load_run(write_run(tmp_path, [row]))

    assert run.requests.iloc[0]["ttft_s"] == pytest.approx(1e-9)


def test_every_metric_states_unit_prerequisites_and_definition() -> None:
    for metric in METRICS:
        assert metric.unit == "s"
        assert metric.column == f"{metric.name}_s"
        assert metric.requires
        assert metric.definition
        assert metric.open_loop_only == ("intended_ns" in metric.requires)


def test_the_page_of_metrics_has_the_present_tables() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")

    assert with_tables(page) == page, "run `make docs`"
    assert all(f"| `{metric.column}` | {metric.definition}" in page for metric in METRICS)
