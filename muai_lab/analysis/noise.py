"""A/A noise: the difference between runs of the same configuration.

A difference between configurations counts only against it. Repeats of several configurations over the same schedules
are separated as in an analysis of variance without replication. The mean of a configuration and the effect of a
schedule are removed from the logarithms, so effects are ratios. The rest is noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from muai_lab.analysis.dependence import CONFIDENCE


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one figure.

    Attributes:
        sd: Standard deviation of one run's figure, relative (0.02 is 2 %).
        freedom: Degrees of freedom behind it.
        shared_schedules: True if the effect of the schedules was removed; else it is part of the noise.
    """

    sd: float
    freedom: int
    shared_schedules: bool

    @property
    def difference(self) -> float:
        """Two runs of the same configuration differ by less than this in 19 of 20 cases, relative."""
        return float(stdtrit(self.freedom, 0.5 + CONFIDENCE / 2.0)) * math.sqrt(2.0) * self.sd


def run_noise(figures: Sequence[Sequence[float | None]]) -> Noise | None:
    """Return the noise of a figure from repeats; None with fewer than two usable repeats.

    A repeat is left out if its value is missing or not positive; in all rows, if there are several.

    Args:
        figures: One row per configuration, one column per repeat (schedule). [configurations, repeats]
    """
    rows = [np.array([math.nan if value is None else float(value) for value in row]) for row in figures]
    width = min((row.size for row in rows), default=0)
    table = np.array([row[:width] for row in rows])
    if table.size == 0:
        return None
    usable = np.isfinite(table) & (table > 0)
    whole = usable.all(axis=0)
    if len(rows) > 1 and int(whole.sum()) >= 2:
        logs = np.log(table[:, whole])
        left = logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0, keepdims=True) + logs.mean()
        freedom = (logs.shape[0] - 1) * (logs.shape[1] - 1)
        return Noise(math.sqrt(float((left**2).sum()) / freedom), freedom, shared_schedules=True)
    squares, freedom = 0.0, 0
    for row, good in zip(table, usable, strict=True):
        if int(good.sum()) >= 2:
            logs = np.log(row[good])
            squares += float(((logs - logs.mean()) ** 2).sum())
            freedom += logs.size - 1
    return Noise(math.sqrt(squares / freedom), freedom, shared_schedules=False) if freedom else None
