"""Intervals of dependent data hold the truth, or there is none: by simulations of known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.coverage_intervals import FIGURES, Tally, span_in, tallies
from benchmarks.worlds import World, ar1, batching, iid, mm1
from muai_lab.analysis.dependence import (
    BINS,
    RELAXATION,
    MeasuredSpan,
    autocorrelation_time,
    level_over_time,
    middles_s,
    relaxation_s,
    share_bounds,
    span_of,
)
from muai_lab.analysis.window import in_flight_at


def ar1_series(phi: float, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    series = np.empty(size)
    level = rng.standard_normal() / np.sqrt(1.0 - phi**2)
    for index, shock in enumerate(rng.standard_normal(size)):
        level = phi * level + shock
        series[index] = level
    return series


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_autocorrelation_time_of_an_autoregressive_series(phi: float) -> None:
    truth = (1.0 + phi) / (1.0 - phi)

    found = np.mean([autocorrelation_time(ar1_series(phi, 4000, seed)) for seed in range(10)])

    assert found == pytest.approx(truth, rel=0.25)


def test_series_without_memory() -> None:
    assert autocorrelation_time(np.full(100, 3.0)) == 1.0
    assert autocorrelation_time(np.tile([1.0, -1.0], 50)) == 1.0
    assert autocorrelation_time(np.array([1.0, 2.0])) == 1.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=200))
def test_an_autocorrelation_time_is_at_least_one_step_and_finite(series: list[float]) -> None:
    found = autocorrelation_time(np.array(series))

    assert 1.0 <= found <= 2.0 * len(series)


def test_the_long_run_variance_of_independent_and_of_repeated_influences() -> None:
    rng = np.random.default_rng(0)
    span, ratios = MeasuredSpan(0.0, 100.0), []
    for _ in range(50):
        t_s, single = rng.uniform(0.0, 100.0, 2000), rng.standard_normal(2000)
        repeated = np.repeat(single[:200], 10)
        independent = span.long_run_variance(single - single.mean(), t_s) / 2000
        clustered = span.long_run_variance(repeated - repeated.mean(), np.repeat(t_s[:200], 10)) / 2000
        ratios.append((independent, clustered))

    assert np.mean(ratios, axis=0) == pytest.approx([1.0, 10.0], rel=0.3)


def test_the_memory_is_that_of_the_slowest_signal() -> None:
    t_s = np.linspace(0.0, 99.9, 1000)
    slow = np.exp(np.sin(2.0 * np.pi * t_s / 50.0))
    flat = np.full(BINS, 4.0)

    fast = span_of(0.0, 100.0, t_s, flat, [(np.ones(1000), t_s)])
    both = span_of(0.0, 100.0, t_s, flat, [(np.ones(1000), t_s), (slow, t_s)])

    assert fast.memory_s < 0.5
    assert both.memory_s > 5.0


def test_few_values_have_no_level_over_time_and_gaps_are_bridged() -> None:
    assert level_over_time(np.ones(10), np.arange(10.0), 0.0, 10.0).size == 0
    values = np.ones(100)
    values[:50] = np.nan

    level = level_over_time(values, np.linspace(0.0, 9.9, 100), 0.0, 10.0)

    assert np.isfinite(level).all()


def test_bounds_of_a_share_are_the_exact_binomial_ones() -> None:
    assert share_bounds(1.0, 100.0) == (pytest.approx(0.025 ** (1 / 100)), 1.0)
    low, high = share_bounds(0.5, 10.0)
    assert (low, high) == (pytest.approx(0.1871, abs=1e-4), pytest.approx(0.8129, abs=1e-4))


def test_a_window_needs_a_length() -> None:
    with pytest.raises(ValueError, match="positive length"):
        MeasuredSpan(5.0, 0.0)
    assert middles_s(0.0, BINS)[0] == 0.5


# Bounds below: 120 runs with a true coverage of .95 stay within .89 and .995 in all but about 1 of 300 cases; the seed
# is fixed, so what holds once holds always. `python -m benchmarks.coverage` makes the whole table.


def now(world: World, requests: int, runs: int) -> dict[str, Tally]:
    return {figure: both[1] for figure, both in tallies(world, requests, runs, seed=1).items()}


@pytest.mark.parametrize("world", [iid(), ar1(0.05)], ids=lambda world: world.name)
def test_intervals_hold_the_truth_where_the_memory_is_short(world: World) -> None:
    found = now(world, 2400, runs=120)

    assert {figure for figure in FIGURES if found[figure].printed >= 100} >= {"p50", "throughput"}
    assert all(found[figure].coverage >= 0.89 for figure in FIGURES if found[figure].printed >= 100)


def test_intervals_hold_the_truth_of_a_queue_once_the_window_is_long_enough() -> None:
    found = now(mm1(0.6), 9600, runs=120)

    assert all(found[figure].printed >= 80 for figure in ("mean", "p50", "throughput"))
    assert all(found[figure].coverage >= 0.89 for figure in ("mean", "p50", "throughput"))


@pytest.mark.parametrize("world", [mm1(0.9), ar1(5.0)], ids=lambda world: world.name)
def test_there_is_no_interval_in_a_window_of_a_few_memories(world: World) -> None:
    found = now(world, 600, runs=60)

    assert all(found[figure].printed <= 2 for figure in ("mean", "p50", "p99"))


def test_a_lucky_window_that_is_too_short_seldom_gets_an_interval() -> None:
    # Without a bound of the memory 2 % of these runs got one, which never held the truth
    found = now(mm1(0.8), 600, runs=200)

    assert all(found[figure].printed <= 1 for figure in ("mean", "p50", "p99"))


@pytest.mark.parametrize("together", [1, 10])
def test_the_least_memory_of_servers_without_a_queue_follows_from_the_number_in_flight(together: int) -> None:
    # Requests that are due one by one or ten at once, answers exponential of 1 s: the memory is 2 s
    rng = np.random.default_rng(3)
    due_s = np.repeat(np.sort(rng.uniform(0.0, 2000.0, 40_000 // together)), together)
    flying = in_flight_at(due_s, due_s + rng.exponential(1.0, due_s.size), middles_s(10.0, 1990.0))

    assert relaxation_s(1990.0, due_s, flying) == pytest.approx(RELAXATION * 2.0, rel=0.25)


def test_the_batching_world_agrees_with_its_formula() -> None:
    world = batching(0.7)
    traffic = world.draw(np.random.default_rng(0), 40, 300)

    means = [window.latency_s[window.measured].mean() for window in traffic.windows(300 / traffic.rate)]

    assert np.mean(means) == pytest.approx(world.mean_s, abs=4.0 * np.std(means) / np.sqrt(len(means)))


def test_a_simulated_window_counts_the_requests_in_flight_at_its_start() -> None:
    world = mm1(0.8)
    traffic = world.draw(np.random.default_rng(0), 5, 200)

    for window in traffic.windows(200 / traffic.rate):
        assert (window.end_s >= window.start_s).all()
        assert not window.measured.all() or window.due_s[0] >= window.start_s
        assert span_in(window).memory_s > 0.0
