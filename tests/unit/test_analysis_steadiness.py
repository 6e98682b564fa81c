"""A queue that grows is noticed; a busy but stable system is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_run import record, simulated, write_run

from muai_lab.analysis import load_run, server_series
from muai_lab.analysis.frames import Run
from muai_lab.analysis.steadiness import Steadiness, mann_kendall_p, steadiness, trend


def judge(run: Run) -> Steadiness:
    return steadiness(run.requests, server_series.series(run.server_metrics, server_series.WAITING), run.window)


def test_a_stable_system_is_steady(tmp_path: Path) -> None:
    verdicts = [judge(load_run(simulated(tmp_path / str(seed), rate=18.0, seed=seed))).verdict for seed in range(5)]

    assert verdicts == ["steady"] * 5


def test_a_growing_queue_is_not_steady(tmp_path: Path) -> None:
    found = judge(load_run(simulated(tmp_path, rate=45.0)))

    assert found.verdict == "not steady"
    assert "requests in flight rose" in str(found)
    assert "requests waiting in the server rose" in str(found)
    assert "TTFT rose" in str(found)


def test_a_growing_queue_is_seen_without_the_servers_metrics(tmp_path: Path) -> None:
    run = load_run(simulated(tmp_path, rate=45.0, server_metrics=None))

    assert "requests in flight rose" in str(judge(run))


def test_a_warm_up_that_was_too_short_is_not_steady(tmp_path: Path) -> None:
    rows = []
    for index in range(200):
        due = index * 0.05
        first = due + 0.02 + 0.2 * np.exp(-due / 3.0)
        rows.append(record(index, due=due, sent=due, chunks=[first, first + 0.1]))

    assert "TTFT fell from about" in str(judge(load_run(write_run(tmp_path, rows))))


def test_few_requests_cannot_tell(tmp_path: Path) -> None:
    rows = [record(i, due=i * 0.3, sent=i * 0.3, chunks=[i * 0.3 + 0.1, i * 0.3 + 0.2]) for i in range(12)]

    found = judge(load_run(write_run(tmp_path, rows)))

    assert found.verdict == "unknown"
    assert "12, at least 40 needed" in str(found)


def test_a_slope_is_found_whatever_outliers_say() -> None:
    t = np.linspace(0.0, 10.0, 200, endpoint=False)
    values = 5.0 + 2.0 * t
    values[::17] = 1e6

    found = trend(t, values, 0.0, 10.0)

    assert found is not None
    assert found.change == pytest.approx(20.0, rel=0.1)
    assert found.p < 0.001


def test_no_trend_without_enough_slices() -> None:
    assert trend(np.array([1.0, 2.0]), np.array([1.0, 2.0]), 0.0, 10.0) is None
    assert trend(np.empty(0), np.empty(0), 0.0, 10.0) is None


@pytest.mark.parametrize(
    ("values", "p"),
    [
        # S = 10 of 10, var = 5*4*15/18, z = 9/sqrt(16.667) = 2.2045
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.02749),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 0.02749),
        ([3.0, 3.0, 3.0, 3.0, 3.0], 1.0),
    ],
)
def test_mann_kendall_by_hand(values: list[float], p: float) -> None:
    assert mann_kendall_p(np.array(values)) == pytest.approx(p, abs=1e-4)
