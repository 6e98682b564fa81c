"""Records of requests and their table."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from muai_lab.errors import RunError
from muai_lab.load.records import records_table
from muai_lab.request_record import ERROR_TEXT_LIMIT, REQUEST_COLUMNS, REQUESTS_SCHEMA, RequestRecord
from muai_lab.window import Window
from muai_lab.workload.parquet import write_parquet

WINDOW = Window(load_start_ns=0, measure_start_ns=1_000, measure_end_ns=5_000, drain_end_ns=9_000)


def answered(index: int = 0, intended_ns: int = 2_000) -> RequestRecord:
    record = RequestRecord(index, max_tokens=8, intended_ns=intended_ns)
    record.sent_ns = intended_ns + 5
    record.http_status = 200
    record.chunk_t_ns.extend([intended_ns + 50, intended_ns + 60])
    record.chunk_tokens.extend([1, 3])
    record.prompt_tokens, record.output_tokens, record.finish_reason = 16, 4, "length"
    record.end("ok", intended_ns + 70)
    return record


def refused(index: int = 1) -> RequestRecord:
    record = RequestRecord(index, max_tokens=8, released_ns=6_000)
    record.end("error", 6_010, "cannot connect")
    return record


def test_a_record_becomes_a_row() -> None:
    row = records_table([answered()], WINDOW).to_pylist()[0]

    assert row == {
        "index": 0,
        "phase": "measure",
        "intended_ns": 2_000,
        "released_ns": None,
        "sent_ns": 2_005,
        "first_content_ns": 2_050,
        "last_content_ns": 2_060,
        "last_token_ns": 2_060,
        "stream_end_ns": 2_070,
        "status": "ok",
        "http_status": 200,
        "error": None,
        "finish_reason": "length",
        "prompt_tokens": 16,
        "output_tokens": 4,
        "client_output_tokens": None,
        "decode_tokens": 3,
        "unseen_tokens": None,
        "read_together": 0,
        "note": None,
        "cached_prompt_tokens": None,
        "server_queue_ns": None,
        "server_prefill_ns": None,
        "asked_prompt_tokens": None,
        "max_tokens": 8,
        "session": None,
        "turn": None,
        "prefix_group": None,
        "part": None,
        "chunk_t_ns": [2_050, 2_060],
        "chunk_tokens": [1, 3],
    }


def test_what_does_not_apply_is_null_and_never_zero() -> None:
    row = records_table([refused()], WINDOW).to_pylist()[0]

    assert row["status"] == "error"
    assert row["error"] == "cannot connect"
    assert row["chunk_t_ns"] == []
    missing = ("intended_ns", "sent_ns", "first_content_ns", "last_token_ns", "http_status", "output_tokens")
    assert [row[name] for name in missing] == [None] * len(missing)


def test_unknown_tokens_per_chunk_are_null_beside_known_ones() -> None:
    unknown = answered(1)
    unknown.tokens_known = False
    table = records_table([answered(0), unknown, answered(2)], WINDOW)

    assert table["chunk_tokens"].to_pylist() == [[1, 3], None, [1, 3]]
    assert [len(times) for times in table["chunk_t_ns"].to_pylist()] == [2, 2, 2]


@pytest.mark.parametrize(
    ("due_ns", "phase"), [(999, "warmup"), (1_000, "measure"), (4_999, "measure"), (5_000, "drain"), (8_000, "drain")]
)
def test_the_phase_is_that_of_the_due_time(due_ns: int, phase: str) -> None:
    assert records_table([answered(0, due_ns)], WINDOW)["phase"].to_pylist() == [phase]


def test_rows_are_in_order_of_the_schedule() -> None:
    table = records_table([answered(2), answered(0), answered(1)], WINDOW)

    assert table["index"].to_pylist() == [0, 1, 2]
    assert table.schema.equals(REQUESTS_SCHEMA)


def test_no_records_make_an_empty_table_of_the_same_columns() -> None:
    assert records_table([], WINDOW).schema.equals(REQUESTS_SCHEMA)


def test_every_column_is_a_value_of_the_record_or_of_the_window() -> None:
    record = answered()

    assert {column.name for column in REQUEST_COLUMNS if not hasattr(record, column.name)} == {"phase"}


def test_a_record_that_has_not_ended_is_a_fault() -> None:
    with pytest.raises(ValueError, match=r"without an end: \[3\]"):
        records_table([RequestRecord(3, max_tokens=1, intended_ns=0)], WINDOW)


def test_the_first_ending_counts() -> None:
    record = answered()
    record.end("timeout", 99_999, "too late")

    assert (record.status, record.stream_end_ns, record.error) == ("ok", 2_070, None)


def test_error_texts_are_one_short_line() -> None:
    record = RequestRecord(0, max_tokens=1, intended_ns=0)
    record.end("error", 1, "<html>\n" + "very long " * 100)

    assert record.error is not None
    assert "\n" not in record.error
    assert len(record.error) == ERROR_TEXT_LIMIT


def test_a_written_table_is_read_back(tmp_path: Path) -> None:
    table = records_table([answered(0), refused(1)], WINDOW)
    write_parquet(table, tmp_path / "requests.parquet")

    assert pq.read_table(tmp_path / "requests.parquet").equals(table)
    assert [path.name for path in tmp_path.iterdir()] == ["requests.parquet"]


def test_a_table_that_cannot_be_written_leaves_the_old_one_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "requests.parquet"

    with pytest.raises(RunError, match=r"cannot write .*requests\.parquet: .*another output directory"):
        write_parquet(records_table([answered()], WINDOW), path)
