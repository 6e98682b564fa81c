"""Intervals and verdicts after the search, against worlds of known truth: small versions of `benchmarks.coverage`."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.coverage_quality import LEAST, THREE_BITS, comparisons
from benchmarks.coverage_tuner_confirmation import PAIRS, PRESENT, WINNER, RunArena, bench_of
from benchmarks.coverage_tuner_keys import figures, five_small, one_key, substitutes
from muai_lab.tuning.confirmation import Confirmation, PairPlan, confirm


@pytest.mark.parametrize("spread", [0.01, 0.03])
def test_intervals_of_worths_hold_the_truth_and_useless_keys_are_put_back(spread: float) -> None:
    found = figures(one_key, spread, repeats=120, seed=1)

    assert found["coverage"] >= 0.85
    assert found["idle"] <= 0.1
    assert found["loss"] <= 0.01


def test_many_small_worths_are_not_lost() -> None:
    assert figures(five_small, 0.02, repeats=25, seed=1)["loss"] < 0.02


def test_one_of_two_keys_that_do_the_same_is_enough() -> None:
    found = figures(substitutes, 0.01, repeats=15, seed=1)

    assert found["loss"] < 0.005
    assert found["named"] > 0.5


def confirmations(gain: float) -> list[Confirmation]:
    return [
        confirm(
            bench_of(RunArena(gain, np.random.default_rng((7, repeat))), blocks=2), PRESENT, WINNER, PairPlan(PAIRS)
        )
        for repeat in range(16)
    ]  # fmt: skip


def test_equal_configurations_are_hardly_ever_confirmed() -> None:
    assert sum(found.accepted for found in confirmations(0.0)) <= 2


def test_intervals_of_whole_confirmations_hold_the_truth_and_those_given_up_have_none() -> None:
    whole = [found for found in confirmations(0.05) if found.low is not None and found.high is not None]
    given_up = [found for found in confirmations(-0.05) if len(found.pairs) < PAIRS]

    assert sum(found.low <= 0.05 <= found.high for found in whole) >= 0.8 * len(whole)  # type: ignore[operator]
    assert given_up
    assert all(found.low is None and found.high is None and not found.accepted for found in given_up)


@pytest.mark.parametrize("correlation", [0.0, 0.2])
def test_a_configuration_that_agrees_too_little_is_hardly_ever_accepted(correlation: float) -> None:
    found = comparisons(0.92, correlation, 40, seed=1)

    assert sum(one.keeps(LEAST) for one in found) <= 1


def test_a_configuration_that_agrees_well_is_mostly_accepted_with_a_bound_below_the_truth() -> None:
    found = comparisons(0.99, 0.05, 25, seed=1)

    assert sum(one.keeps(LEAST) for one in found) >= 23
    assert sum(one.low <= 0.99 for one in found) >= 22


def test_right_first_tokens_do_not_hide_wrong_decode_steps() -> None:
    assert not any(one.keeps(LEAST) for one in comparisons(THREE_BITS, 0.0, 10, seed=1, first=1.0))
