"""Length distributions."""

from __future__ import annotations

import numpy as np
import pytest

from muai_lab.settings.distributions import (
    FixedLength,
    LengthDistribution,
    LognormalLength,
    NormalLength,
    UniformLength,
)
from muai_lab.workload.lengths import draw_lengths

COUNT = 20_000


def draw(distribution: LengthDistribution, count: int = COUNT, seed: int = 0) -> np.ndarray:
    return draw_lengths(distribution, count, np.random.default_rng(seed))


def test_fixed_lengths_are_all_the_same() -> None:
    assert draw(FixedLength(value=7), 3).tolist() == [7, 7, 7]


def test_uniform_lengths_reach_both_ends_and_each_as_often() -> None:
    lengths = draw(UniformLength(low=3, high=6))
    values, counts = np.unique(lengths, return_counts=True)

    assert values.tolist() == [3, 4, 5, 6]
    assert counts == pytest.approx([COUNT / 4] * 4, rel=0.05)


def test_normal_lengths_have_their_mean_and_spread() -> None:
    lengths = draw(NormalLength(mean=200.0, sigma=20.0))

    assert lengths.mean() == pytest.approx(200.0, abs=1.0)
    assert lengths.std() == pytest.approx(20.0, rel=0.03)


def test_the_mean_of_lognormal_lengths_is_that_of_the_lengths_themselves() -> None:
    lengths = draw(LognormalLength(mean=300.0, sigma=0.8))

    assert lengths.mean() == pytest.approx(300.0, rel=0.03)
    assert np.log(lengths).std() == pytest.approx(0.8, rel=0.03)
    assert np.median(lengths) < lengths.mean()


@pytest.mark.parametrize(
    "distribution",
    [NormalLength(mean=50.0, sigma=40.0, low=10, high=90), LognormalLength(mean=50.0, sigma=1.5, low=10, high=90)],
    ids=["normal", "lognormal"],
)
def test_draws_outside_the_bounds_become_the_bounds(distribution: LengthDistribution) -> None:
    lengths = draw(distribution)

    assert (lengths.min(), lengths.max()) == (10, 90)


def test_no_length_is_below_one_token() -> None:
    assert draw(NormalLength(mean=1.0, sigma=5.0)).min() == 1


@pytest.mark.parametrize(
    "distribution",
    [
        UniformLength(low=1, high=1000),
        NormalLength(mean=100.0, sigma=30.0),
        LognormalLength(mean=100.0, sigma=0.5),
    ],
    ids=["uniform", "normal", "lognormal"],
)
def test_more_lengths_begin_with_the_same(distribution: LengthDistribution) -> None:
    np.testing.assert_array_equal(draw(distribution, 1000)[:100], draw(distribution, 100))
    assert not np.array_equal(draw(distribution, 100, seed=1), draw(distribution, 100))
