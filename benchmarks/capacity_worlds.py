"""Simulated queues at any rate and server speed, whose capacity within an SLO is known. Many probes at once.

Each is a queue of `benchmarks.worlds`, or one like it, with a bound on its latency. The share of requests that
meet the bound in a long run follows from the stationary distribution of the number in the system.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammainc, ndtri

from benchmarks.worlds import (
    OUTPUT_TOKENS,
    PREFILL_S,
    PREFILL_SIGMA,
    SERVICE_S,
    SLOTS,
    BatchState,
    ObservedWindow,
    batching_capacity,
    single_server_ends,
    step_s,
)
from muai_lab.arrays import Floats

_POINTS = 9  # of each quadrature
_MOST_IN_SYSTEM = 3000

Serve = Callable[[np.random.Generator, Floats], tuple[Floats, Floats]]
"""Latency and end of each request, [runs, requests], from its due time (infinite if it never arrives)."""


@dataclass(frozen=True, slots=True)
class QueueWorld:
    """One queue.

    bound_s: the SLO's bound. top: rate of saturation. attained: share within the bound in a long run at a rate.
    variation: coefficient of variation of the gaps between arrivals, which are gamma distributed; 1 is Poisson.
    """

    title: str
    bound_s: float
    top: float
    serve: Serve
    attained: Callable[[float], float]
    variation: float = 1.0

    def capacity(self, quantile: float) -> float:
        """Return the highest rate at which the share stays at the quantile in a long run, in requests/s."""
        return float(brentq(lambda rate: self.attained(rate) - quantile, self.top * 0.05, self.top * 0.99999))

    def probe(
        self, rng: np.random.Generator, rates: Floats, speeds: Floats, lead_s: Floats, seconds: Floats
    ) -> Iterator[ObservedWindow]:
        """Yield one window per rate, after a lead-in from an idle server that is `speed` times as fast as the world."""
        end_s = lead_s + seconds
        mean = float((rates * end_s).max())
        count = int(mean + 6.0 * self.variation * math.sqrt(mean) + 20)
        shape = self.variation**-2.0
        due_s = np.cumsum(rng.gamma(shape, 1.0 / shape, (rates.size, count)) / rates[:, None], axis=1)
        due_s[due_s >= end_s[:, None]] = np.inf
        latency_s, over_s = self.serve(rng, due_s * speeds[:, None])
        for row, speed in enumerate(speeds.tolist()):
            comes = np.isfinite(due_s[row])
            due, latency, over = due_s[row][comes], latency_s[row][comes] / speed, over_s[row][comes] / speed
            seen = over >= lead_s[row]
            yield ObservedWindow(float(lead_s[row]), float(seconds[row]), due[seen], latency[seen], over[seen])


def single_server(bound_s: float, variation: float = 1.0) -> QueueWorld:
    """Return the GI/M/1 queue with gamma gaps and a bound on the time in the system; M/M/1 if `variation` is 1."""

    def serve(rng: np.random.Generator, due_s: Floats) -> tuple[Floats, Floats]:
        served_s = rng.exponential(SERVICE_S, due_s.shape)
        end_s = single_server_ends(due_s, served_s)
        return end_s - np.where(np.isfinite(due_s), due_s, 0.0), end_s

    kind = "M/M/1" if variation == 1.0 else f"bursts (cv {variation:g}), one server"
    return QueueWorld(
        f"{kind}, {bound_s:g} s", bound_s, 1.0 / SERVICE_S, serve,
        lambda rate: -math.expm1(-(1.0 - _found_busy(rate, variation)) / SERVICE_S * bound_s), variation,
    )  # fmt: skip


def _found_busy(rate: float, variation: float) -> float:
    """Return the share of a GI/M/1 queue's arrivals that wait: the root of x = E[exp(-(1 - x) gap / service)]."""
    shape = variation**-2.0

    def excess(x: float) -> float:
        return math.exp(-shape * math.log1p((1.0 - x) / SERVICE_S / (rate * shape))) - x

    return float(brentq(excess, 0.0, 1.0 - 1e-9 * (1.0 - rate * SERVICE_S)))


def slots(bound_s: float) -> QueueWorld:
    """Return continuous batching with 32 slots and a bound on the time to first token."""

    def serve(rng: np.random.Generator, due_s: Floats) -> tuple[Floats, Floats]:
        batch = BatchState(due_s, rng)
        batch.run()
        return batch.first_s - np.where(np.isfinite(due_s), due_s, np.nan), batch.end_s

    return QueueWorld(
        f"queue with {SLOTS} slots, {bound_s:g} s", bound_s, batching_capacity(), serve,
        lambda rate: _slots_attained(rate, bound_s),
    )  # fmt: skip


def _slots_attained(rate: float, bound_s: float) -> float:
    """Return the share within the bound at a rate.

    A request that finds n others waits until n - 31 of them have ended, then for the running step and its own prefill.
    """
    found = np.arange(_MOST_IN_SYSTEM)
    batch = np.minimum(found[1:], SLOTS)
    weight = np.concatenate([[0.0], np.cumsum(np.log(rate * OUTPUT_TOKENS * step_s(batch) / batch))])
    share = np.exp(weight - weight.max())
    share /= share.sum()
    grid = (np.arange(_POINTS) + 0.5) / _POINTS
    prefill_s = PREFILL_S * np.exp(PREFILL_SIGMA * ndtri(grid) - PREFILL_SIGMA**2 / 2.0)
    attained = 0.0
    for others in range(SLOTS):
        own_s = grid[:, None] * float(step_s(np.array(others + 1))) + prefill_s
        attained += float(share[others]) * float((own_s <= bound_s).mean())
    left_s = bound_s - (grid[:, None] * float(step_s(np.array(SLOTS))) + prefill_s)
    waits = gammainc(found[SLOTS:, None, None] - SLOTS + 1.0, np.maximum(left_s, 0.0) * batching_capacity())
    return float(attained + (share[SLOTS:, None, None] * waits).sum() / left_s.size)
