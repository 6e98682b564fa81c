"""A run that is too short for intervals states the length that would do, in one note."""

from __future__ import annotations

from pathlib import Path

import pytest

from muai_lab.analysis import load_run, summarise
from muai_lab.analysis.precision import rounded_up
from muai_lab.report import result_table
from tests.unit.synthetic_run import simulated


def test_a_run_of_a_few_memories_shows_its_figures_and_the_length_that_would_do(tmp_path: Path) -> None:
    summary = summarise(load_run(simulated(tmp_path, rate=18.0, seed=1)))

    median = summary.latency["tpot_s"].p50
    assert median.value > 0.0
    assert (median.low, median.high) == (None, None)
    assert median.needs_s > summary.window.duration_s
    notes = [note for note in result_table(summary).notes if "too short for some 95 % intervals" in note]
    assert len(notes) == 1
    assert "at least" in notes[0]
    assert "p50" in notes[0]
    assert summary.precision.needs_s["p50"] >= median.needs_s
    assert summary.precision.memory_s > 0.0


def test_no_length_is_advised_for_a_queue_that_grows(tmp_path: Path) -> None:
    notes = result_table(summarise(load_run(simulated(tmp_path, rate=45.0)))).notes

    assert any("not steady" in note and "no 95 % intervals" in note for note in notes)
    assert not any("at least" in note and "intervals" in note for note in notes)


@pytest.mark.parametrize(("seconds", "shown"), [(3.2, 4.0), (127.0, 130.0), (130.0, 130.0), (1201.0, 1300.0)])
def test_lengths_are_rounded_up(seconds: float, shown: float) -> None:
    assert rounded_up(seconds) == pytest.approx(shown)
