"""Arrival processes against their distributions, for fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.workload.arrival import constant, poisson
from muai_lab.workload.randomness import RandomStreams

RATE, HORIZON_S = 50.0, 400.0
SEEDS = [0, 1, 2, 3, 4]


def gaps(offsets: np.ndarray) -> np.ndarray:
    return np.diff(offsets, prepend=0.0)


def ks_distance(samples: np.ndarray, cdf: np.ndarray) -> float:
    """Kolmogorov-Smirnov statistic; cdf: the model's distribution function at the sorted samples."""
    n = len(samples)
    steps = np.arange(n + 1) / n
    return float(max(np.max(steps[1:] - cdf), np.max(cdf - steps[:-1])))


def ks_critical(n: int, alpha: float) -> float:
    """Asymptotic critical value of the one-sample statistic (Smirnov 1948): sqrt(-ln(alpha / 2) / (2 n))."""
    return float(np.sqrt(-np.log(alpha / 2) / (2 * n)))


class TestConstant:
    def test_arrivals_are_evenly_spaced_from_zero(self) -> None:
        assert constant(4.0, 1.5).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]

    @given(rate=st.floats(0.01, 2000.0), horizon_s=st.floats(0.001, 100.0))
    def test_the_horizon_is_filled_and_not_passed(self, rate: float, horizon_s: float) -> None:
        offsets = constant(rate, horizon_s)

        assert offsets[0] == 0.0
        assert offsets[-1] < horizon_s
        assert len(offsets) / rate >= horizon_s or len(offsets) / rate == pytest.approx(horizon_s)


@pytest.mark.parametrize("seed", SEEDS)
class TestPoisson:
    @pytest.fixture
    def offsets(self, seed: int) -> np.ndarray:
        return poisson(RATE, HORIZON_S, RandomStreams(seed).stream("arrivals"))

    def test_the_mean_rate_is_the_offered_rate(self, offsets: np.ndarray) -> None:
        expected = RATE * HORIZON_S
        assert len(offsets) == pytest.approx(expected, abs=4 * np.sqrt(expected))

    def test_gaps_vary_like_an_exponential(self, offsets: np.ndarray) -> None:
        variation = gaps(offsets).std() / gaps(offsets).mean()
        assert variation == pytest.approx(1.0, abs=0.05)

    def test_gaps_are_exponential(self, offsets: np.ndarray) -> None:
        samples = np.sort(gaps(offsets))
        assert ks_distance(samples, 1 - np.exp(-RATE * samples)) < ks_critical(len(samples), alpha=0.001)

    def test_counts_per_second_are_dispersed_like_poisson(self, offsets: np.ndarray) -> None:
        counts = np.histogram(offsets, bins=int(HORIZON_S), range=(0, HORIZON_S))[0]
        # The variance-to-mean ratio of n Poisson counts is chi-square(n - 1)/(n - 1): a spread of sqrt(2 / (n - 1)).
        assert counts.var(ddof=1) / counts.mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / (HORIZON_S - 1)))

    def test_gaps_do_not_depend_on_the_one_before(self, offsets: np.ndarray) -> None:
        spaces = gaps(offsets)
        correlation = np.corrcoef(spaces[:-1], spaces[1:])[0, 1]
        assert abs(correlation) < 4 / np.sqrt(len(spaces))

    def test_a_longer_load_begins_with_the_same_arrivals(self, offsets: np.ndarray, seed: int) -> None:
        longer = poisson(RATE, 2 * HORIZON_S, RandomStreams(seed).stream("arrivals"))
        assert len(longer) > len(offsets)
        np.testing.assert_array_equal(longer[: len(offsets)], offsets)

    def test_arrivals_are_in_order_and_within_the_horizon(self, offsets: np.ndarray) -> None:
        assert np.all(np.diff(offsets) >= 0)
        assert offsets[0] > 0
        assert offsets[-1] < HORIZON_S


def test_the_distribution_test_would_notice_constant_arrivals() -> None:
    samples = np.sort(np.diff(constant(RATE, HORIZON_S)))
    assert ks_distance(samples, 1 - np.exp(-RATE * samples)) > ks_critical(len(samples), alpha=0.001)


def test_a_rate_too_low_for_the_horizon_gives_no_arrival() -> None:
    assert len(poisson(1e-6, 1.0, RandomStreams(0).stream("arrivals"))) == 0


def test_streams_differ_by_name_and_by_seed_and_repeat_themselves() -> None:
    def first(seed: int, name: str) -> float:
        return float(RandomStreams(seed).stream(name).random())

    assert first(0, "arrivals") == first(0, "arrivals")
    assert len({first(0, "arrivals"), first(0, "prompts"), first(1, "arrivals"), first(1, "prompts")}) == 4
