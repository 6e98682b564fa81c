"""A histogram that is cheap to fill, for observers that run on the engine's thread."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0)
FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0)
STEP_BUCKETS_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)
BATCH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0)


class Histogram:
    """Counts per bucket and a sum; not synchronised, the owner holds the lock.

    The histogram of prometheus_client takes a lock and walks its buckets in Python at every observation. Here an
    observation is a binary search and two additions, and the counts are accumulated only at a scrape.

    bounds: upper bounds in rising order, without `+Inf`.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._labels = [*(str(float(bound)) for bound in self._bounds), "+Inf"]

    def observe(self, value: float) -> None:
        """Count `value` in the first bucket whose upper bound is not below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add(self, other: Histogram) -> None:
        """Add all observations of a histogram with the same bounds."""
        self._counts = [mine + theirs for mine, theirs in zip(self._counts, other._counts, strict=True)]
        self._sum += other._sum

    def snapshot(self) -> tuple[list[tuple[str, float]], float]:
        """Return cumulative counts per upper bound (Prometheus' `le`), `+Inf` last, and the sum of all values."""
        return list(zip(self._labels, accumulate(self._counts), strict=True)), self._sum
