"""The marks of figures that the load generator itself can explain, where users see them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from muai_lab.analysis import load_run
from muai_lab.analysis.client_part import doubt_of, footnote
from muai_lab.analysis.summary import summarise
from muai_lab.analysis.summary_schema import ClientPart
from muai_lab.report.run_page import render_report
from muai_lab.report.run_table import result_table
from muai_lab.slo import Slo
from tests.unit.test_analysis_table import example

FIGURES = {"mean": 0.004, "p50": 0.001, "p90": 0.004, "p95": 0.012, "p99": 0.03}


def generator(**further: Any) -> dict[str, Any]:
    added = {
        column: {"figures_s": FIGURES, "marked": ["p50"]}
        for column in ("ttft_s", "ttft_from_intended_s", "e2e_s", "e2e_from_intended_s")
    }
    return {"verdict": "ok", "reason": None, "cpu_share": 0.1, "send_lag_p99_s": 0.001, "added": added, **further}


def test_a_marked_figure_has_its_mark_in_summary_table_and_report(tmp_path: Path) -> None:
    run = load_run(example(tmp_path, manifest={"generator": generator()}))
    summary = summarise(run)

    assert summary.latency["ttft_s"].client == ClientPart(may_add_s=FIGURES, marked=("p50",))
    assert summary.validity.valid
    (note,) = [warning for warning in summary.validity.warnings if warning.startswith("*")]
    assert "TTFT p50 1.00 ms" in note
    (grid,) = [grid for grid in result_table(summary).grids if grid.title == "latency in ms"]
    row = next(row for row in grid.rows if row[0] == "TTFT")
    assert [cell.endswith("*") for cell in row[1:6]] == [False, True, False, False, False]
    page = render_report(run, summary)
    assert "load generator&#39;s own delay" in page or "load generator's own delay" in page


def test_a_busy_machine_is_a_verdict_with_its_advice(tmp_path: Path) -> None:
    busy = generator(verdict="machine_busy", reason="others used 1.6 of 2 cores", advice="end the other programs")
    validity = summarise(load_run(example(tmp_path, manifest={"generator": busy}))).validity

    assert (validity.verdict, validity.valid) == ("machine_busy", False)
    assert (validity.reason, validity.next_step) == ("others used 1.6 of 2 cores", "end the other programs")


def test_a_run_that_states_no_part_has_no_marks(tmp_path: Path) -> None:
    summary = summarise(load_run(example(tmp_path)))

    assert summary.latency["ttft_s"].client is None
    assert "client" not in summary.as_document()["latency"]["ttft_s"]
    assert footnote({"verdict": "ok"}, lambda column: 1000) is None


@pytest.mark.parametrize(
    ("samples", "named"),
    [(9, []), (38, ["p50"]), (60, ["p50", "p90"]), (100, ["p50", "p90", "p95"]), (500, ["p50", "p90", "p95", "p99"])],
)
def test_the_note_names_only_figures_that_are_given(samples: int, named: list[str]) -> None:
    added = {"ttft_s": {"figures_s": FIGURES, "marked": ["p50", "p90", "p95", "p99"]}}

    note = footnote({"added": added}, lambda column: samples)

    assert ([] if note is None else re.findall(r"p\d+", note)) == named


@pytest.mark.parametrize(
    ("slo", "doubt"),
    [
        (Slo(ttft_ms=500.0, quantile=0.99), True),
        (Slo(ttft_ms=700.0, quantile=0.99), False),
        (Slo(ttft_ms=500.0, quantile=0.95), False),
        (Slo(ttft_ms=200.0, quantile=0.95), True),
        (Slo(ttft_ms=200.0, quantile=0.5), False),
        (Slo(e2e_ms=500.0, quantile=0.999), True),
        (Slo(tpot_ms=5.0), False),
    ],
)
def test_an_slo_is_in_doubt_by_its_own_bound_and_quantile(slo: Slo, doubt: bool) -> None:
    assert (doubt_of(generator(), slo) is not None) == doubt
