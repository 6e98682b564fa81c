"""The requests of a run by part of a mix, or by turn of a conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muai_lab.analysis import load_run, summarise
from muai_lab.analysis.summary_schema import Summary
from muai_lab.report import result_table
from tests.unit.synthetic_run import record, write_run


def summary_of(path: Path, *groups: dict[str, Any]) -> Summary:
    """A run of 20 requests for each group; `after` is its time to first token."""
    rows: list[dict[str, Any]] = []
    for group in groups:
        for number in range(20):
            due = number * 0.4
            chunks = [due + group["after"] + gap for gap in (0.0, 0.1, 0.2)]
            fields = {key: value for key, value in group.items() if key != "after"}
            rows.append(record(len(rows), due=due, sent=due, chunks=chunks, **fields))
    return summarise(load_run(write_run(path / "run", rows)))


def test_parts_of_a_mix_have_figures_of_their_own(tmp_path: Path) -> None:
    short = {"part": "short", "after": 0.1, "prompt_tokens": 20, "cached_prompt_tokens": 5}
    long = {"part": "long", "after": 0.5, "prompt_tokens": 400}

    summary = summary_of(tmp_path, short, long)

    found = summary.breakdown
    assert found.by == "part"
    assert [(row.name, row.due, row.prompt_tokens_p50) for row in found.rows] == [
        ("long", 20, 400.0),
        ("short", 20, 20.0),
    ]
    assert [row.cached_share for row in found.rows] == [None, 0.25]
    assert [round(row.ttft_p50_s, 6) for row in found.rows] == [0.5, 0.1]
    assert [round(row.tpot_p50_s, 6) for row in found.rows] == [0.1, 0.1]


def test_turns_of_conversations_are_counted_from_one(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, *({"turn": turn, "session": 0, "after": 0.1 * (turn + 1)} for turn in range(3)))

    assert summary.breakdown.by == "turn"
    assert [row.name for row in summary.breakdown.rows] == ["1", "2", "3"]
    written = result_table(summary).plain()
    assert "by turn: medians, latency in ms" in written
    assert "  3      20  20             10       -   300   100  500" in written


def test_failures_are_counted_and_too_few_successes_give_no_figure(tmp_path: Path) -> None:
    fine = {"part": "a", "after": 0.1}
    failing = {"part": "b", "after": 0.1, "status": "error"}

    row = summary_of(tmp_path, fine, failing).breakdown.rows[1]

    assert (row.due, row.ok, row.ttft_p50_s) == (20, 0, None)


def test_requests_of_one_kind_are_not_divided(tmp_path: Path) -> None:
    assert summary_of(tmp_path, {"after": 0.1}, {"after": 0.2}).breakdown is None
