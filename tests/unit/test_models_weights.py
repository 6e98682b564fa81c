"""Drawn weights: exact, repeatable, of the wanted spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.models.weights import draw, round_to_bfloat16


def test_the_same_seed_draws_the_same_numbers_on_every_machine() -> None:
    values = draw("a model/a tensor", (3,), 1.0)

    assert values.tolist() == [0.83203125, -1.5390625, -1.234375]


def test_tensors_with_different_seeds_are_independent() -> None:
    one, other = draw("one", (50_000,), 1.0), draw("other", (50_000,), 1.0)

    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02


@pytest.mark.parametrize("std", [0.03, 0.25, 1.0])
def test_spread_is_the_wanted_one(std: float) -> None:
    values = draw("spread", (200, 300), std)

    assert values.dtype == np.float32
    assert values.shape == (200, 300)
    assert values.std() == pytest.approx(std, rel=0.02)
    assert values.mean() == pytest.approx(0, abs=0.02 * std)


def test_bfloat16_holds_every_weight_exactly() -> None:
    values = torch.from_numpy(draw("exact", (1000,), 0.0371))

    assert torch.equal(values.bfloat16().float(), values)


@given(st.lists(st.floats(width=32, allow_nan=False, min_value=-(2.0**100), max_value=2.0**100), min_size=1))
def test_rounding_is_that_of_bfloat16(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)

    assert np.array_equal(round_to_bfloat16(values), torch.from_numpy(values).bfloat16().float().numpy())
