"""A queue that grows is noticed; a busy but stable system is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.worlds import batching
from muai_lab.analysis import load_run, server_series
from muai_lab.analysis.dependence import middles_s
from muai_lab.analysis.frames import Run
from muai_lab.analysis.steadiness import Steadiness, steadiness, trend
from muai_lab.analysis.window import in_flight_at
from tests.unit.synthetic_run import record, simulated, write_run


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


def test_the_size_of_a_trend_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    series = 10.0 + 5.0 * np.linspace(-0.5, 0.5, 400) + rng.normal(0.0, 1.0, 400)

    found = trend("requests in flight", series)

    assert found is not None
    assert found.significant
    assert found.relative == pytest.approx(0.5, rel=0.1)
    low, high = found.interval
    assert low is not None
    assert high is not None
    assert low < 0.5 < high
    assert found.smallest is not None
    assert found.smallest < 0.5


def test_a_slow_down_by_a_fifth_is_found_once_the_window_is_long_enough() -> None:
    rng = np.random.default_rng(0)
    slow_down = np.log(np.linspace(0.9, 1.1, 1000))

    long = trend("TTFT", slow_down + rng.normal(0.0, 0.3, 1000), logarithmic=True)
    short = trend("TTFT", slow_down[::25] + rng.normal(0.0, 0.3, 40), logarithmic=True)

    assert long is not None
    assert long.significant
    assert long.relative == pytest.approx(0.2, abs=0.1)
    assert short is not None
    assert not short.significant
    assert short.smallest is not None
    assert short.smallest > 0.2


def test_no_trend_from_few_points_and_none_in_a_constant() -> None:
    assert trend("TTFT", np.ones(5)) is None
    flat = trend("requests waiting in the server", np.zeros(100))
    assert flat is not None
    assert not flat.significant
    assert flat.relative is None


def test_a_queue_close_to_saturation_that_wanders_is_rarely_called_unsteady() -> None:
    """Seldom enough: 60 runs at a load of 0.95 have at most 6 false alarms, where the true rate is about 3 %."""
    world = batching(0.95)
    traffic = world.draw(np.random.default_rng(1), 60, int(30 * world.rate))

    alarms = 0
    for window in traffic.windows(30.0):
        flying = in_flight_at(window.due_s, window.end_s, middles_s(window.start_s, 30.0))
        found = trend("requests in flight", flying)
        assert found is not None
        alarms += found.significant

    assert alarms <= 6
