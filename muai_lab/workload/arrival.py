"""When requests are due: offsets in seconds from the start of the load, in the open loop.

In the closed loop a request is due when a slot becomes free, so there is nothing to draw. Every process here is drawn
from one generator front to back: a longer horizon begins with the same arrivals as a shorter one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.float64]

_BLOCK = 4096


def constant(rate: float, horizon_s: float) -> Offsets:
    """Evenly spaced arrivals: 0, 1/rate, 2/rate, ... below `horizon_s`. rate: requests per second."""
    count = int(np.ceil(rate * horizon_s))
    offsets = np.arange(count, dtype=np.float64) / rate
    return offsets[offsets < horizon_s]


def poisson(rate: float, horizon_s: float, rng: np.random.Generator) -> Offsets:
    """A Poisson process on `[0, horizon_s)`: independent exponential gaps with mean 1/rate, the first from 0."""
    gaps: list[Offsets] = []
    reached_s = 0.0
    while reached_s < horizon_s:
        block = rng.exponential(1.0 / rate, _BLOCK)
        gaps.append(block)
        reached_s += float(block.sum())
    offsets = np.cumsum(np.concatenate(gaps)) if gaps else np.empty(0)
    return offsets[offsets < horizon_s]
