"""Arrival processes against their distributions, for fixed seeds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.workload.arrival import DiurnalRate, PiecewiseRate, Rate, constant, gamma, modulated, poisson, replayed
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


def erlang_2(gap_means: np.ndarray) -> np.ndarray:
    """Distribution function of gamma gaps of shape 2; gap_means: gaps in units of their mean."""
    return 1 - np.exp(-2 * gap_means) * (1 + 2 * gap_means)


def gamma_half(gap_means: np.ndarray) -> np.ndarray:
    """Distribution function of gamma gaps of shape 1/2, that of a squared normal variable."""
    return np.vectorize(math.erf)(np.sqrt(gap_means / 2))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("cv", "cdf"), [(2**-0.5, erlang_2), (2**0.5, gamma_half)], ids=["even", "bursty"])
class TestGamma:
    @pytest.fixture
    def offsets(self, seed: int, cv: float) -> np.ndarray:
        return gamma(RATE, cv, HORIZON_S, RandomStreams(seed).stream("arrivals"))

    def test_gaps_follow_the_gamma_distribution(self, offsets: np.ndarray, cdf: Callable) -> None:
        samples = np.sort(gaps(offsets)) * RATE
        assert ks_distance(samples, cdf(samples)) < ks_critical(len(samples), alpha=0.001)

    def test_gaps_have_the_wanted_mean_and_variation(self, offsets: np.ndarray, cv: float, cdf: Callable) -> None:
        assert gaps(offsets).mean() == pytest.approx(1 / RATE, rel=4 * cv / np.sqrt(len(offsets)))
        assert gaps(offsets).std() / gaps(offsets).mean() == pytest.approx(cv, rel=0.06)

    def test_counts_are_dispersed_by_the_squared_variation(self, offsets: np.ndarray, cv: float, cdf: Callable) -> None:
        # For a renewal process the ratio of variance to mean of the counts tends to cv^2 (Cox, Renewal Theory, 1962).
        counts = np.histogram(offsets, bins=int(HORIZON_S), range=(0, HORIZON_S))[0]
        assert counts.var(ddof=1) / counts.mean() == pytest.approx(cv**2, rel=0.35)

    def test_a_longer_load_begins_with_the_same_arrivals(
        self, offsets: np.ndarray, cv: float, seed: int, cdf: Callable
    ) -> None:
        longer = gamma(RATE, cv, 2 * HORIZON_S, RandomStreams(seed).stream("arrivals"))
        np.testing.assert_array_equal(longer[: len(offsets)], offsets)


RATES = {
    "ramp": PiecewiseRate.ramp(10.0, 90.0, 200.0),
    "ramp to nothing": PiecewiseRate.ramp(100.0, 0.0, 300.0),
    "steps": PiecewiseRate.steps([20.0, 0.0, 80.0, 40.0], 60.0),
    "diurnal": DiurnalRate(50.0, 0.8, 90.0),
    "diurnal to nothing": DiurnalRate(50.0, 1.0, 90.0),
}


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES.keys())
class TestChangingRates:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_on_the_clock_of_expected_arrivals_gaps_are_exponential(self, rate: Rate, seed: int) -> None:
        offsets = modulated(rate, HORIZON_S, RandomStreams(seed).stream("arrivals"))

        samples = np.sort(gaps(np.array([rate.expected(offset) for offset in offsets])))
        assert ks_distance(samples, 1 - np.exp(-samples)) < ks_critical(len(samples), alpha=0.001)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_every_stretch_has_as_many_arrivals_as_its_rate_expects(self, rate: Rate, seed: int) -> None:
        offsets = modulated(rate, HORIZON_S, RandomStreams(seed).stream("arrivals"))

        borders = np.linspace(0, HORIZON_S, 21)
        expected = np.diff([rate.expected(border) for border in borders])
        counts = np.histogram(offsets, borders)[0]
        assert np.all(np.abs(counts - expected) <= 4.5 * np.sqrt(np.maximum(expected, 1e-9)))

    def test_time_and_expected_arrivals_are_inverse_to_each_other(self, rate: Rate) -> None:
        counts = np.linspace(0.1, rate.expected(HORIZON_S) - 0.1, 500)

        times = rate.time_of(counts)

        np.testing.assert_allclose([rate.expected(time) for time in times], counts, rtol=1e-9, atol=1e-6)
        assert np.all(np.diff(times) >= 0)

    def test_a_longer_load_begins_with_the_same_arrivals(self, rate: Rate) -> None:
        short = modulated(rate, HORIZON_S / 2, RandomStreams(0).stream("arrivals"))
        long = modulated(rate, HORIZON_S, RandomStreams(0).stream("arrivals"))

        np.testing.assert_array_equal(long[: len(short)], short)
        assert short[-1] < HORIZON_S / 2


def test_nothing_is_due_while_a_step_is_zero() -> None:
    offsets = modulated(PiecewiseRate.steps([20.0, 0.0, 20.0], 10.0), 30.0, RandomStreams(0).stream("arrivals"))

    assert not np.any((offsets >= 10.0) & (offsets < 20.0))
    assert np.any(offsets >= 20.0)


def test_a_ramp_stays_at_its_end() -> None:
    ramp = PiecewiseRate.ramp(10.0, 30.0, 20.0)

    assert ramp.expected(20.0) == 400.0
    assert ramp.expected(30.0) == 700.0


class TestReplay:
    def test_recorded_times_start_at_zero_and_run_faster(self) -> None:
        assert replayed(np.array([100.0, 101.0, 105.0]), 2.0, 10.0).tolist() == [0.0, 0.5, 2.5]

    def test_what_lies_beyond_the_horizon_is_left_out(self) -> None:
        assert replayed(np.array([0.0, 3.0, 6.0]), 1.0, 6.0).tolist() == [0.0, 3.0]

    def test_the_gaps_keep_their_shape(self) -> None:
        recorded = gamma(3.0, 4.0, 300.0, RandomStreams(1).stream("arrivals"))
        faster = replayed(recorded, 10.0, 30.0)

        def variation(offsets: np.ndarray) -> float:
            return float(np.diff(offsets).std() / np.diff(offsets).mean())

        assert variation(faster) == pytest.approx(variation(recorded))


positive = st.floats(0.5, 50.0)
processes = st.one_of(
    st.builds(lambda rate, cv: lambda horizon, rng: gamma(rate, cv, horizon, rng), positive, st.floats(0.1, 8.0)),
    st.builds(
        lambda start, end, ramp_s: lambda horizon, rng: modulated(PiecewiseRate.ramp(start, end, ramp_s), horizon, rng),
        positive,
        st.floats(0.0, 50.0),
        positive,
    ),
    st.builds(
        lambda rates, step_s: lambda horizon, rng: modulated(PiecewiseRate.steps(rates, step_s), horizon, rng),
        st.lists(st.floats(0.0, 50.0), min_size=1, max_size=5).filter(any),
        positive,
    ),
    st.builds(
        lambda mean, amplitude, period_s: (
            lambda horizon, rng: modulated(DiurnalRate(mean, amplitude, period_s), horizon, rng)
        ),
        positive,
        st.floats(0.0, 1.0),
        positive,
    ),
)


@given(process=processes, horizon_s=st.floats(0.1, 60.0), seed=st.integers(0, 100))
def test_any_process_is_in_order_within_its_horizon_and_begins_the_longer_one(
    process: Callable, horizon_s: float, seed: int
) -> None:
    offsets = process(horizon_s, RandomStreams(seed).stream("arrivals"))
    longer = process(2 * horizon_s, RandomStreams(seed).stream("arrivals"))

    assert np.all(np.diff(offsets) >= 0)
    assert np.all((offsets >= 0) & (offsets < horizon_s))
    np.testing.assert_array_equal(longer[: len(offsets)], offsets)
    assert np.all(longer[len(offsets) :] >= horizon_s)
