"""Lengths of prompts and outputs, in tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from muai_lab.settings.distributions import (
    FixedLength,
    LengthDistribution,
    LognormalLength,
    NormalLength,
    UniformLength,
)

Lengths = npt.NDArray[np.int64]

_BLOCK = 1024


def draw_lengths(distribution: LengthDistribution, count: int, rng: np.random.Generator) -> Lengths:
    """`count` lengths; a larger count begins with the same lengths.

    Normal and lognormal draws are rounded and clipped to `[low, high]`: clipped mass sits on the bounds.
    """
    match distribution:
        case FixedLength(value=value):
            return np.full(count, value, dtype=np.int64)
        case UniformLength(low=low, high=high):
            return rng.integers(low, high, size=count, endpoint=True)
        case NormalLength(mean=mean, sigma=sigma, low=low, high=high):
            return _clipped(rng.normal(mean, sigma, count), low, high)
        case LognormalLength(mean=mean, sigma=sigma, low=low, high=high):
            # E[exp(N(mu, sigma^2))] = exp(mu + sigma^2 / 2), and `mean` is the mean of the length itself.
            mu = math.log(mean) - sigma**2 / 2
            return _clipped(rng.lognormal(mu, sigma, count), low, high)


def endless_lengths(distribution: LengthDistribution, rng: np.random.Generator) -> Iterator[int]:
    """Lengths without end, drawn block by block: how many are taken changes none of them."""
    while True:
        yield from draw_lengths(distribution, _BLOCK, rng).tolist()


def _clipped(values: npt.NDArray[np.float64], low: int, high: int | None) -> Lengths:
    return np.rint(np.clip(values, low, high)).astype(np.int64)
