"""Length distributions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from muai_lab.errors import RunError
from muai_lab.settings.distributions import (
    EmpiricalLength,
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


class TestEmpirical:
    def test_lengths_come_as_often_as_they_were_seen(self) -> None:
        lengths = draw(EmpiricalLength(values=(5, 50, 500), weights=(1.0, 0.0, 3.0)))
        values, counts = np.unique(lengths, return_counts=True)

        assert values.tolist() == [5, 500]
        assert counts / COUNT == pytest.approx([0.25, 0.75], abs=0.02)

    def test_without_weights_each_is_as_likely(self) -> None:
        _, counts = np.unique(draw(EmpiricalLength(values=(1, 2, 3, 4))), return_counts=True)

        assert counts / COUNT == pytest.approx([0.25] * 4, abs=0.02)

    def test_a_file_holds_a_length_and_perhaps_its_weight_in_each_line(self, tmp_path: Path) -> None:
        path = tmp_path / "lengths.txt"
        path.write_text("7\n\n9,2\n", encoding="utf-8")
        values, counts = np.unique(draw(EmpiricalLength(path=str(path))), return_counts=True)

        assert values.tolist() == [7, 9]
        assert counts / COUNT == pytest.approx([1 / 3, 2 / 3], abs=0.02)

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("7\nlong\n", r"lengths\.txt:2: the length is 'long', expected a whole number"),
            ("7,often\n", r"lengths\.txt:1: the weight is 'often', expected a number"),
            ("0\n", r"lengths\.txt:1: a length is at least 1"),
            ("7,nan\n", r"expected a finite number"),
            ("", r"lengths\.txt holds no length with a weight"),
            ("7,0\n", r"lengths\.txt holds no length with a weight"),
        ],
    )
    def test_a_file_that_makes_no_sense_is_refused(self, tmp_path: Path, content: str, problem: str) -> None:
        path = tmp_path / "lengths.txt"
        path.write_text(content, encoding="utf-8")

        with pytest.raises(RunError, match=problem):
            draw(EmpiricalLength(path=str(path)))

    @pytest.mark.parametrize(
        ("keys", "problem"),
        [
            ({}, "either as values or in a file"),
            ({"values": (1,), "path": "x"}, "either as values or in a file"),
            ({"values": (1, 2), "weights": (1.0,)}, "1 weights for 2 values"),
            ({"values": (1,), "weights": (0.0,)}, "every weight is 0"),
        ],
    )
    def test_settings_that_make_no_sense_are_refused(self, keys: dict, problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            EmpiricalLength(**keys)
