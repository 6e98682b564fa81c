"""Simulated systems with known distributions, to check intervals and verdicts against. Many independent runs at once.

Each world yields a latency (time to first token, or time in the system) whose distribution is known, from a formula or
from very long runs. The worlds differ in the time over which latencies are correlated:

* `batching`: continuous batching with 32 slots. A step takes longer the fuller the batch is. A request that finds no
  free slot waits in order of arrival. Near saturation a rare backlog makes most of the tail.
* `mm1`: the M/M/1 queue, time in the system. Its relaxation time grows with 1 / (1 - sqrt(load))^2.
* `ar1`: log-normal latencies whose logarithm is an Ornstein-Uhlenbeck process (continuous AR(1)).
* `iid`: independent latencies with a heavy tail (Lomax, shape 3: the third moment is infinite).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from muai_lab.arrays import Floats, Ints

SLOTS = 32
STEP_S, STEP_PER_SLOT_S = 0.010, 0.00025
OUTPUT_TOKENS = 64.0
PREFILL_S, PREFILL_SIGMA = 0.020, 0.5
_BATCHING_WARM_UP = 3000  # requests before the window: several relaxation times at a load of 0.9
_MM1_WARM_UP = 2000
_TRUTH_RUNS, _TRUTH_REQUESTS = 400, 10_000

SERVICE_S = 0.1  # mean service time of the M/M/1 queue
AR1_RATE, AR1_MEDIAN_S, AR1_SIGMA = 20.0, 0.2, 0.5
IID_RATE, IID_SCALE_S, IID_SHAPE = 20.0, 0.1, 3.0


@dataclass(frozen=True, slots=True)
class ObservedWindow:
    """One run as a client observes it: the requests that were due in the window, or in flight when it began.

    start_s, length_s: The window. due_s, latency_s, end_s: One entry per request, ordered by due time. A request counts
    if it was due in the window.
    """

    start_s: float
    length_s: float
    due_s: Floats
    latency_s: Floats
    end_s: Floats

    @property
    def measured(self) -> NDArray[np.bool_]:
        """True for each request that was due in the window."""
        return np.asarray(self.due_s >= self.start_s)


@dataclass(frozen=True, slots=True)
class WorldTraffic:
    """Requests of many independent runs of a world: arrays [runs, requests].

    rate: offered, requests/s. start_s: [runs], when the effect of the empty start has faded.
    """

    rate: float
    due_s: Floats
    latency_s: Floats
    end_s: Floats
    start_s: Floats

    def windows(self, length_s: float) -> Iterator[ObservedWindow]:
        """Yield the window of this length of each run."""
        rows = zip(self.due_s, self.latency_s, self.end_s, self.start_s.tolist(), strict=True)
        for due_s, latency_s, end_s, start_s in rows:
            seen = (end_s >= start_s) & (due_s < start_s + length_s)
            yield ObservedWindow(start_s, length_s, due_s[seen], latency_s[seen], end_s[seen])


@dataclass(frozen=True, slots=True)
class World:
    """One simulated system.

    rate: offered, which is also the true throughput, requests/s. draw: `draw(rng, runs, requests)` simulates windows in
    which `requests` requests are due on average. mean_s, quantile: of the latency's distribution; None takes them from
    very long runs.
    """

    name: str
    title: str
    rate: float
    draw: Callable[[np.random.Generator, int, int], WorldTraffic]
    mean_s: float | None
    quantile: Callable[[float], float] | None = None

    def mean(self) -> float:
        """Return the true mean of the latency, in seconds."""
        return float(self._sampled().mean()) if self.mean_s is None else self.mean_s

    def quantiles(self, wanted: Sequence[float]) -> list[float]:
        """Return the true quantiles of the latency, in seconds."""
        if self.quantile is not None:
            return [self.quantile(q) for q in wanted]
        return [float(value) for value in np.quantile(self._sampled(), wanted)]

    def _sampled(self) -> Floats:
        """Return the latencies of very long runs, of the requests that were due in their windows."""
        return _sampled(self)


@cache
def _sampled(world: World) -> Floats:
    traffic = world.draw(np.random.default_rng(20_000), _TRUTH_RUNS, _TRUTH_REQUESTS)
    due = np.isfinite(traffic.due_s) & (traffic.due_s >= traffic.start_s[:, None])
    return np.asarray(traffic.latency_s[due])


def _arrivals(rng: np.random.Generator, rate: float, runs: int, requests: int) -> Floats:
    """Return due times of Poisson arrivals, enough of them that a window of `requests` on average is complete."""
    count = int(requests + 6.0 * math.sqrt(requests) + 50)
    return np.cumsum(rng.exponential(1.0 / rate, (runs, count)), axis=1)


def single_server_ends(due_s: Floats, served_s: Floats) -> Floats:
    """Return when each request ends at one server, first come first served: Lindley's recursion, unrolled.

    All arrays are [runs, requests]; served_s: service times.
    """
    work_s = np.cumsum(served_s, axis=1)
    return np.asarray(np.maximum.accumulate(due_s - (work_s - served_s), axis=1) + work_s)


def step_s(batch: Floats | Ints) -> Floats:
    """Return the seconds of one step of the batching world with `batch` sequences."""
    return np.asarray(STEP_S + STEP_PER_SLOT_S * batch, dtype=np.float64)


def batching_capacity() -> float:
    """Return the highest rate of the batching world, in requests per second."""
    return SLOTS / (OUTPUT_TOKENS * (STEP_S + STEP_PER_SLOT_S * SLOTS))


class BatchState:
    """State of the batching world, a row per run, between two events.

    Each sequence in a slot gets a token per step, so progress is the same for all of them: `tokens` counts it, and a
    sequence is over when the count reaches its `last`. Output lengths are exponential, so the number of requests in the
    system is a birth-and-death process.
    """

    def __init__(self, due_s: Floats, rng: np.random.Generator) -> None:
        runs = due_s.shape[0]
        self.row = np.arange(runs)
        self.due_s = np.concatenate([due_s, np.full((runs, 1), np.inf)], axis=1)
        self.output = rng.exponential(OUTPUT_TOKENS, due_s.shape)
        self.offset_s = rng.random(due_s.shape)  # an arrival waits for the rest of the step that runs
        self.prefill_s = PREFILL_S * rng.lognormal(-(PREFILL_SIGMA**2) / 2.0, PREFILL_SIGMA, due_s.shape)
        self.first_s, self.end_s = np.zeros_like(due_s), np.full_like(due_s, np.nan)
        self.last = np.full((runs, SLOTS), np.inf)
        self.request = np.zeros((runs, SLOTS), dtype=np.int64)
        self.now_s, self.tokens = np.zeros(runs), np.zeros(runs)
        self.busy, self.arrived, self.started = (np.zeros(runs, dtype=np.int64) for _ in range(3))

    def run(self) -> None:
        """Serve all requests."""
        while (self.busy > 0).any() or np.isfinite(self.due_s[self.row, self.arrived]).any():
            self.advance()

    def advance(self) -> None:
        """Make the next event of each run: a sequence ends, or a request arrives; then a free slot is filled."""
        slot = self.last.argmin(axis=1)
        left = self.last[self.row, slot] - self.tokens
        pace_s = step_s(self.busy)
        ends_s, arrives_s = self.now_s + left * pace_s, self.due_s[self.row, self.arrived]
        live = np.isfinite(np.minimum(ends_s, arrives_s))
        ends = live & (ends_s <= arrives_s)
        now_s = np.where(live, np.minimum(ends_s, arrives_s), self.now_s)
        self.tokens += np.where(ends, left, (now_s - self.now_s) / pace_s)
        self.now_s = now_s
        rows = np.flatnonzero(ends)
        self.end_s[rows, self.request[rows, slot[rows]]] = now_s[rows]
        self.last[rows, slot[rows]] = np.inf
        self.busy -= ends
        self.arrived += live & ~ends
        self._start(np.flatnonzero((self.started < self.arrived) & (self.busy < SLOTS)))

    def _start(self, rows: Ints) -> None:
        """Give one waiting request of each of these runs a free slot."""
        slot, number = np.isinf(self.last[rows]).argmax(axis=1), self.started[rows]
        wait_s = self.offset_s[rows, number] * step_s(self.busy[rows] + 1)
        self.first_s[rows, number] = self.now_s[rows] + wait_s + self.prefill_s[rows, number]
        self.last[rows, slot] = self.tokens[rows] + self.output[rows, number]
        self.request[rows, slot] = number
        self.busy[rows] += 1
        self.started[rows] += 1


def _batching(load: float) -> Callable[[np.random.Generator, int, int], WorldTraffic]:
    def draw(rng: np.random.Generator, runs: int, requests: int) -> WorldTraffic:
        rate = load * batching_capacity()
        due_s = _arrivals(rng, rate, runs, _BATCHING_WARM_UP + requests)
        batch = BatchState(due_s, rng)
        batch.run()
        return WorldTraffic(rate, due_s, batch.first_s - due_s, batch.end_s, due_s[:, _BATCHING_WARM_UP - 1].copy())

    return draw


def _batching_mean(load: float) -> float:
    """Return the mean time to first token, by Little's law over the stationary distribution of the queue."""
    if load >= 1.0:
        return math.inf
    rate = load * batching_capacity()
    count = np.arange(1, 5000)
    batch = np.minimum(count, SLOTS)
    weight = np.exp(np.concatenate([[0.0], np.cumsum(np.log(rate * OUTPUT_TOKENS * step_s(batch) / batch))]))
    share = weight / weight.sum()
    waiting = float((share[1:] * np.maximum(count - SLOTS, 0)).sum())
    own_step = float((share * step_s(np.minimum(np.concatenate([[1], count + 1]), SLOTS))).sum())
    return waiting / rate + own_step / 2.0 + PREFILL_S


def _mm1(load: float) -> Callable[[np.random.Generator, int, int], WorldTraffic]:
    def draw(rng: np.random.Generator, runs: int, requests: int) -> WorldTraffic:
        rate = load / SERVICE_S
        due_s = _arrivals(rng, rate, runs, _MM1_WARM_UP + requests)
        served_s = rng.exponential(SERVICE_S, due_s.shape)
        end_s = single_server_ends(due_s, served_s)
        return WorldTraffic(rate, due_s, end_s - due_s, end_s, due_s[:, _MM1_WARM_UP - 1].copy())

    return draw


def _ar1(tau_s: float) -> Callable[[np.random.Generator, int, int], WorldTraffic]:
    def draw(rng: np.random.Generator, runs: int, requests: int) -> WorldTraffic:
        due_s = _arrivals(rng, AR1_RATE, runs, requests)
        kept = np.exp(-np.diff(due_s, axis=1, prepend=-np.inf) / tau_s)
        level = np.zeros(runs)
        latency_s = np.empty_like(due_s)
        shocks = rng.standard_normal(due_s.shape)
        for index in range(due_s.shape[1]):
            level = kept[:, index] * level + np.sqrt(1.0 - kept[:, index] ** 2) * shocks[:, index]
            latency_s[:, index] = AR1_MEDIAN_S * np.exp(AR1_SIGMA * level)
        return WorldTraffic(AR1_RATE, due_s, latency_s, due_s + latency_s, np.zeros(runs))

    return draw


def _iid(rng: np.random.Generator, runs: int, requests: int) -> WorldTraffic:
    due_s = _arrivals(rng, IID_RATE, runs, requests)
    latency_s = IID_SCALE_S * rng.pareto(IID_SHAPE, due_s.shape)
    return WorldTraffic(IID_RATE, due_s, latency_s, due_s + latency_s, np.zeros(runs))


def batching(load: float) -> World:
    """Return continuous batching at a load (offered ÷ saturation, below 1); its latency is the time to first token."""
    title = f"queue with {SLOTS} slots, ρ {load:g}"
    return World(f"batching {load:g}", title, load * batching_capacity(), _batching(load), mean_s=_batching_mean(load))


def mm1(load: float) -> World:
    """Return the M/M/1 queue at a load below 1; its latency is the time in the system."""
    mean_s = SERVICE_S / (1.0 - load)
    return World(
        f"mm1 {load:g}", f"M/M/1, ρ {load:g}", load / SERVICE_S, _mm1(load), mean_s, lambda q: -mean_s * math.log1p(-q)
    )


def ar1(tau_s: float) -> World:
    """Return log-normal latencies with autocorrelation exp(-t / tau) of their logarithm."""
    return World(
        f"ar1 {tau_s:g}",
        f"AR(1), τ {tau_s:g} s",
        AR1_RATE,
        _ar1(tau_s),
        AR1_MEDIAN_S * math.exp(AR1_SIGMA**2 / 2.0),
        lambda q: AR1_MEDIAN_S * math.exp(AR1_SIGMA * float(ndtri(q))),
    )


def iid() -> World:
    """Return independent latencies with a heavy tail."""
    return World(
        "iid",
        "independent, heavy tail",
        IID_RATE,
        _iid,
        IID_SCALE_S / (IID_SHAPE - 1.0),
        lambda q: IID_SCALE_S * ((1.0 - q) ** (-1.0 / IID_SHAPE) - 1.0),
    )


WORLDS: tuple[World, ...] = (batching(0.5), batching(0.8), batching(0.9), mm1(0.8), ar1(2.0), iid())
"""The worlds of the table of intervals."""
