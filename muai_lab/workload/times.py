"""Pauses, in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from muai_lab.settings.distributions import ExponentialTime, FixedTime, LognormalTime, TimeDistribution

_BLOCK = 1024


def draw_times(distribution: TimeDistribution, count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return `count` times in seconds; a larger count begins with the same times."""
    match distribution:
        case FixedTime(value_s=value_s):
            return np.full(count, value_s)
        case ExponentialTime(mean_s=mean_s):
            return rng.exponential(mean_s, count)
        case LognormalTime(mean_s=mean_s, sigma=sigma):
            # E[exp(N(mu, sigma^2))] = exp(mu + sigma^2 / 2), and `mean_s` is the mean of the time itself.
            return rng.lognormal(math.log(mean_s) - sigma**2 / 2, sigma, count)


def endless_times(distribution: TimeDistribution, rng: np.random.Generator) -> Iterator[float]:
    """Yield times without end, drawn block by block, so that they do not depend on the number that is used."""
    while True:
        yield from draw_times(distribution, _BLOCK, rng).tolist()
