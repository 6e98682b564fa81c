"""Lengths of prompts and outputs, in tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from muai_lab.settings.distributions import (
    EmpiricalLength,
    FixedLength,
    LengthDistribution,
    LognormalLength,
    NormalLength,
    UniformLength,
)
from muai_lab.workload.reading import FileReading, number, tokens

Lengths = npt.NDArray[np.int64]

_BLOCK = 1024


def draw_lengths(distribution: LengthDistribution, count: int, rng: np.random.Generator) -> Lengths:
    """Return `count` lengths; a larger count begins with the same lengths.

    Normal and lognormal draws are rounded and clipped to `[low, high]`: the bounds receive the clipped mass.
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
        case EmpiricalLength():
            values, weights = _observed(distribution)
            return values[np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(count), side="right")]


def _observed(distribution: EmpiricalLength) -> tuple[Lengths, npt.NDArray[np.float64]]:
    """Return lengths and the weight of each; raises RunError if the file does not hold these."""
    if distribution.path is None:
        values = np.array(distribution.values, dtype=np.int64)
        return values, np.array(distribution.weights or np.ones(len(values)), dtype=np.float64)
    reading = FileReading(Path(distribution.path).expanduser(), skippable=False)
    rows: list[tuple[int, float]] = []
    for place, line in reading.lines():
        if line.strip():
            length, comma, weight = line.partition(",")
            try:
                rows.append((tokens(length, "the length"), number(weight, "the weight") if comma else 1.0))
            except ValueError as error:
                reading.bad(place, str(error))
            if rows and (rows[-1][0] < 1 or rows[-1][1] < 0):
                reading.bad(place, "a length is at least 1, and a weight at least 0")
    if not rows or not any(weight for _, weight in rows):
        raise reading.nothing("length with a weight")
    return np.array([length for length, _ in rows], dtype=np.int64), np.array([weight for _, weight in rows])


def endless_lengths(distribution: LengthDistribution, rng: np.random.Generator) -> Iterator[int]:
    """Yield lengths without end, drawn block by block, so that they do not depend on the number that is used."""
    while True:
        yield from draw_lengths(distribution, _BLOCK, rng).tolist()


def _clipped(values: npt.NDArray[np.float64], low: int, high: int | None) -> Lengths:
    return np.rint(np.clip(values, low, high)).astype(np.int64)
