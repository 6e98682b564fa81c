"""Quantiles only with enough samples; intervals that cover the truth about as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.analysis.dependence import ENOUGH_MEMORIES, MEMORIES_BEYOND, MeasuredSpan
from muai_lab.analysis.statistics import (
    MAX_BLOCKS,
    MIN_BLOCKS,
    Blocks,
    bootstrap_quantiles,
    describe,
    make_blocks,
    min_samples,
    quantile_name,
    rate,
    share,
)


@pytest.mark.parametrize(
    ("quantile", "needed"), [(0.5, 10), (0.9, 50), (0.95, 100), (0.99, 500), (0.999, 5000), (0.01, 500)]
)
def test_five_samples_must_lie_beyond_a_quantile(quantile: float, needed: int) -> None:
    assert min_samples(quantile) == needed


def test_names_of_quantiles() -> None:
    assert [quantile_name(q) for q in (0.5, 0.99, 0.999)] == ["p50", "p99", "p99.9"]


def samples(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.exponential(1.0, count), np.sort(rng.uniform(0.0, 100.0, count))


@pytest.mark.parametrize(
    ("count", "given_names"),
    [
        (9, []),
        (10, ["p50"]),
        (99, ["p50", "p90"]),
        (499, ["p50", "p90", "p95"]),
        (500, ["p50", "p90", "p95", "p99"]),
    ],
)
def test_a_quantile_is_given_only_with_enough_samples(count: int, given_names: list[str]) -> None:
    values, t_s = samples(count)

    found = describe(values, t_s, MeasuredSpan(0.0, 100.0))

    assert [name for name, estimate in found.quantiles.items() if estimate.value is not None] == given_names
    assert found.mean.value == pytest.approx(values.mean())


def test_grouped_samples_count_by_their_groups() -> None:
    values, t_s = samples(5000)

    found = describe(values, t_s, MeasuredSpan(0.0, 100.0), independent=100)

    assert found.samples == 5000
    assert found.quantiles["p95"].value is not None
    assert found.quantiles["p99"].value is None


def test_nan_is_left_out_and_nothing_gives_nothing() -> None:
    values, t_s = samples(20)
    span = MeasuredSpan(0.0, 100.0)

    assert describe(np.append(values, np.nan), np.append(t_s, 5.0), span) == describe(values, t_s, span)
    empty = describe(np.array([np.nan]), np.array([1.0]), span)
    assert (empty.samples, empty.mean.value, empty.minimum) == (0, None, None)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(0, 2**16))
def test_replicates_are_the_quantiles_of_the_written_out_samples(numbers: list[float], seed: int) -> None:
    values = np.array(numbers)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(4, np.full(4, 0.25), size=6).astype(np.float64)
    blocks = Blocks(0.0, 1.0, 4, weights)
    block_of = rng.integers(0, 4, values.size)

    found = bootstrap_quantiles(values, block_of, blocks, (0.5, 0.9))

    for row, weight in enumerate(weights.astype(int)):
        drawn = np.concatenate([np.repeat(values[block_of == block], times) for block, times in enumerate(weight)])
        expected = np.quantile(drawn, (0.5, 0.9)) if drawn.size else [np.nan, np.nan]
        np.testing.assert_allclose(found[:, row], expected, rtol=1e-9, atol=1e-6)


def test_large_samples_are_binned_without_moving_the_quantiles() -> None:
    rng = np.random.default_rng(3)
    values, t_s = rng.exponential(1.0, 100_000), rng.uniform(0.0, 100.0, 100_000)

    found = describe(values, t_s, MeasuredSpan(0.0, 100.0)).quantiles["p99"]

    assert found.value == pytest.approx(np.log(100), rel=0.03)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.3


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = np.log(2.0)  # median of the unit exponential
    covered = 0
    for seed in range(80):
        values, t_s = samples(300, seed)
        median = describe(values, t_s, MeasuredSpan(0.0, 100.0), quantiles=(0.5,)).quantiles["p50"]
        assert median.low is not None
        assert median.high is not None
        covered += median.low <= truth <= median.high

    assert 0.88 <= covered / 80 <= 0.99


def test_correlated_neighbours_widen_the_interval() -> None:
    """Requests of one second share their latency, so 2,000 of them are worth no more than the 100 seconds."""
    rng = np.random.default_rng(5)
    t_s = np.sort(rng.uniform(0.0, 100.0, 2000))
    values = rng.exponential(1.0, 100)[t_s.astype(int)]

    by_blocks = describe(values, t_s, MeasuredSpan(0.0, 100.0), quantiles=(0.5,)).mean
    shuffled = describe(values, rng.permutation(t_s), MeasuredSpan(0.0, 100.0), quantiles=(0.5,)).mean

    assert by_blocks.high is not None
    assert by_blocks.low is not None
    assert shuffled.high is not None
    assert shuffled.low is not None
    assert by_blocks.high - by_blocks.low > 2.5 * (shuffled.high - shuffled.low)


def test_the_length_of_blocks_follows_the_correlation_within_bounds() -> None:
    assert make_blocks(0.0, 100.0).count == MAX_BLOCKS
    assert make_blocks(0.0, 100.0, correlation_s=2.0).length_s == pytest.approx(4.0)
    assert make_blocks(0.0, 10.0, correlation_s=30.0).count == MIN_BLOCKS
    with pytest.raises(ValueError, match="positive length"):
        make_blocks(5.0, 5.0)


def test_a_rate_is_the_sum_over_the_window() -> None:
    t_s = np.arange(0.0, 20.0, 0.5)

    found = rate(np.full(40, 3.0), t_s, MeasuredSpan(0.0, 20.0))

    assert found.value == pytest.approx(6.0)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 6.0 <= found.high
    assert rate(np.empty(0), np.empty(0), MeasuredSpan(0.0, 20.0)).value == 0.0


def test_a_share_of_all_or_none_has_an_exact_bound() -> None:
    t_s = np.linspace(0.0, 9.9, 100)
    span = MeasuredSpan(0.0, 10.0)

    every = share(np.ones(100, dtype=bool), t_s, span)
    none = share(np.zeros(100, dtype=bool), t_s, span)

    assert every.value == 1.0
    assert every.low == pytest.approx(0.025 ** (1 / 100))
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert share(np.empty(0, dtype=bool), np.empty(0), span).value is None


def test_hits_of_one_memory_count_as_one_sample_where_all_hit() -> None:
    found = share(np.ones(1000, dtype=bool), np.linspace(0.0, 9.9, 1000), MeasuredSpan(0.0, 10.0, memory_s=0.1))

    assert found.low == pytest.approx(0.025 ** (1 / 100))


def test_no_interval_but_the_length_that_would_do_in_a_window_of_few_memories() -> None:
    rng = np.random.default_rng(1)
    t_s = np.sort(rng.uniform(0.0, 100.0, 2000))
    values = rng.exponential(1.0, 20)[(t_s / 5.0).astype(int)]  # each 5 s share their latency

    found = describe(values, t_s, MeasuredSpan(0.0, 100.0, memory_s=5.0))

    assert found.mean.value == pytest.approx(values.mean())
    assert (found.mean.low, found.mean.high) == (None, None)
    assert found.mean.needs_s == pytest.approx(ENOUGH_MEMORIES * 5.0)
    assert found.quantiles["p99"].needs_s == pytest.approx(100 * MEMORIES_BEYOND * 5.0)


def test_a_tail_that_was_seen_in_one_burst_has_no_interval() -> None:
    t_s = np.linspace(0.0, 99.9, 600)
    values = np.where((t_s > 50.0) & (t_s < 51.0), 9.0, 1.0) + np.random.default_rng(0).random(600)

    tail = describe(values, t_s, MeasuredSpan(0.0, 100.0)).quantiles["p99"]

    assert tail.value is not None
    assert (tail.low, tail.high) == (None, None)


def test_an_interval_of_a_mean_stays_positive_and_reaches_further_up() -> None:
    rng = np.random.default_rng(1)
    t_s = np.sort(rng.uniform(0.0, 100.0, 400))
    mean = describe(rng.pareto(3.0, 400), t_s, MeasuredSpan(0.0, 100.0)).mean

    assert mean.value is not None
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low > 0.0
    assert mean.high - mean.value > mean.value - mean.low


def test_a_share_in_between_is_bracketed_by_its_interval() -> None:
    rng = np.random.default_rng(0)
    found = share(rng.random(1000) < 0.9, rng.uniform(0.0, 10.0, 1000), MeasuredSpan(0.0, 10.0))

    assert found.low is not None
    assert found.high is not None
    assert 0.85 < found.low < 0.9 < found.high < 0.95
