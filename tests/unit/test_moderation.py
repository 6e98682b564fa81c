"""The noise between runs, from the runs at hand and from the past: few false alarms, and most real changes found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.analysis.moderation import (
    Prior,
    Variance,
    declared_prior,
    default_prior,
    fitted_prior,
    moderated_change,
    repeats_to_decide,
    run_variance,
    smallest_detectable,
)

DEFAULT = default_prior(0.04)
VARIANCES = st.lists(st.builds(Variance, st.floats(1e-9, 10.0), st.floats(1.0, 100.0)), max_size=20)


def history(rng: np.random.Generator, sd: float, comparisons: int) -> Prior:
    """The prior after comparisons of three repeats each, on a machine whose runs differ by sd."""
    past = [Variance(float(sd**2 * rng.chisquare(2.0) / 2.0), 2.0) for _ in range(comparisons)]
    return fitted_prior(past, DEFAULT)


def found(
    sd: float, *, pairs: int, effect: float = 0.0, comparisons: int = 0, tries: int = 400, noisier: float = 1.0
) -> float:
    """Share of simulated comparisons whose change is significant.

    effect: relative change from A to B. noisier: how many times as noisy as the past the machine has become.
    """
    rng = np.random.default_rng(7)
    significant = 0
    for _ in range(tries):
        changes = np.log1p(effect) + sd * np.sqrt(2.0) * rng.standard_normal(pairs)
        significant += moderated_change(changes, 0.0, history(rng, sd / noisier, comparisons)).p <= 0.05
    return significant / tries


@pytest.mark.parametrize("comparisons", [0, 8])
@pytest.mark.parametrize("pairs", [2, 3, 5])
@pytest.mark.parametrize("sd", [0.0, 0.01, 0.03, 0.05])
def test_equal_configurations_seldom_differ(sd: float, pairs: int, comparisons: int) -> None:
    # 5 % of 400 tries are 20; 33 or more happen by chance once in 300 series
    assert found(sd, pairs=pairs, comparisons=comparisons) < 0.083


def test_three_repeats_find_a_tenth_under_noise_of_three_percent() -> None:
    assert found(0.03, pairs=3, effect=0.10) > 0.55
    assert found(0.03, pairs=3, effect=0.10, comparisons=8) > 0.65


@pytest.mark.parametrize(("pairs", "most"), [(2, 0.12), (3, 0.1), (5, 0.083)])
def test_a_machine_that_became_noisier_than_its_history_gives_few_false_alarms(pairs: int, most: float) -> None:
    # The true shares are about .08, .07 and .055; if the history gave way only to a contradiction, .19, .13 and .08
    assert found(0.06, pairs=pairs, comparisons=8, noisier=3.0) < most


def test_a_quiet_machine_with_history_finds_a_twentieth() -> None:
    assert found(0.01, pairs=3, effect=0.05, comparisons=8) > 0.8


def test_a_single_run_may_be_judged_by_enough_history_alone() -> None:
    rng = np.random.default_rng(1)

    assert not history(rng, 0.03, 4).decides_alone
    assert history(rng, 0.03, 5).decides_alone
    assert declared_prior(0.03).decides_alone
    assert found(0.03, pairs=1, comparisons=10) < 0.083


def test_a_past_of_equal_variances_counts_more_than_one_of_different_ones() -> None:
    alike = fitted_prior([Variance(4e-4, 4.0)] * 10, DEFAULT)
    mixed = fitted_prior([Variance(4e-4 * factor, 4.0) for factor in (0.01, 0.1, 1, 10, 100) * 2], DEFAULT)

    assert alike.freedom > 3.0 * mixed.freedom
    assert alike.variance == pytest.approx(4e-4, rel=0.2)


def test_runs_that_scatter_more_than_the_history_allows_are_judged_by_themselves() -> None:
    # Given a history of 1 % and three pairs that scatter by 20 %
    quiet = fitted_prior([Variance(1e-4, 4.0)] * 10, DEFAULT)
    changes = np.array([0.4, -0.1, 0.15])

    judged, alone = moderated_change(changes, 0.0, quiet), float(changes.std(ddof=1)) / np.sqrt(3.0)

    assert judged.noisier
    assert (judged.error, judged.freedom) == (pytest.approx(alone), 2.0)


def test_the_noise_within_the_runs_is_the_least() -> None:
    judged = moderated_change(np.array([0.01, 0.01, 0.01]), 0.12, DEFAULT)

    assert judged.error == pytest.approx(0.2)


@given(VARIANCES)
def test_any_history_gives_a_usable_prior(past: list[Variance]) -> None:
    prior = fitted_prior(past, DEFAULT)

    assert np.isfinite(prior.variance)
    assert prior.variance > 0.0
    assert 0.0 < prior.freedom <= 10.0
    assert prior.mean >= prior.variance * (1.0 - 1e-9)
    judged = moderated_change(np.array([0.1, 0.2, 0.3]), 0.0, prior)
    assert 0.0 <= judged.p <= 1.0
    assert (judged.change.low or 0.0) < 0.2 < (judged.change.high or 0.0)


@pytest.mark.parametrize("freedom", [2.0, 5.0, 1e9])
def test_the_smallest_detectable_change_is_found_in_four_of_five_cases(freedom: float) -> None:
    # Given estimates around it, with a standard error that is estimated with as many degrees of freedom
    rng = np.random.default_rng(2)
    error = np.sqrt(rng.chisquare(min(freedom, 1e5), 4000) / min(freedom, 1e5))
    from scipy.special import stdtrit

    seen = smallest_detectable(1.0, freedom) + rng.standard_normal(4000)

    assert np.mean(seen / error > stdtrit(freedom, 0.975)) == pytest.approx(0.8, abs=0.03)


def test_the_repeats_advised_find_the_change() -> None:
    prior = fitted_prior([Variance(9e-4, 4.0)] * 6, DEFAULT)

    needed = repeats_to_decide(float(np.log1p(0.06)), 0.0, prior)

    assert needed is not None
    assert 3 <= needed <= 8
    assert repeats_to_decide(float(np.log1p(0.2)), 0.0, prior) == 2
    assert repeats_to_decide(0.001, 0.0, prior) is None


def test_the_noise_of_a_run_is_half_the_variance_of_the_changes() -> None:
    changes = 0.03 * np.sqrt(2.0) * np.random.default_rng(3).standard_normal(2000)

    measured = run_variance(changes, 0.0)

    assert measured is not None
    assert measured.value == pytest.approx(9e-4, rel=0.1)
    assert measured.freedom == 1999.0
    assert run_variance(changes[:1], 0.0) is None
