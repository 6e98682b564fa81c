"""Simulated systems that no constant of the statistics was fitted to; see `worlds`.

* `mg1`: one server with log-normal service times, first come first served; the latency is the time in the system.
* `conversations`: 16 slots, short and long answers, sessions of several turns with think times. A turn is due once its
  user has read the answer before, so the load reacts to the server. The latency is the time to first token.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import numpy as np

from benchmarks.worlds import World, WorldTraffic, ar1, batching, mm1, single_server_ends
from muai_lab.arrays import Floats

SERVICE_S, SERVICE_SIGMA = 0.1, 1.0
_MG1_WARM_UP = 3000

SLOTS = 16
FIRST_TOKEN_S, FIRST_TOKEN_SIGMA = 0.05, 0.3
SHORT_S, LONG_S, LONG_SHARE = 0.5, 3.0, 0.2
TURNS, THINK_S = 3.0, 4.0
_CONVERSATIONS_WARM_UP_S = 200.0


def _mg1(load: float) -> Callable[[np.random.Generator, int, int], WorldTraffic]:
    def draw(rng: np.random.Generator, runs: int, requests: int) -> WorldTraffic:
        rate, count = load / SERVICE_S, _MG1_WARM_UP + int(requests + 6.0 * math.sqrt(requests) + 50)
        due_s = np.cumsum(rng.exponential(1.0 / rate, (runs, count)), axis=1)
        served_s = SERVICE_S * rng.lognormal(-(SERVICE_SIGMA**2) / 2.0, SERVICE_SIGMA, due_s.shape)
        end_s = single_server_ends(due_s, served_s)
        return WorldTraffic(rate, due_s, end_s - due_s, end_s, due_s[:, _MG1_WARM_UP - 1].copy())

    return draw


def mg1(load: float) -> World:
    """Return the M/G/1 queue with log-normal service times at a load below 1; its mean is Pollaczek and Khinchine's."""
    square = SERVICE_S**2 * math.exp(SERVICE_SIGMA**2)
    mean_s = SERVICE_S + load / SERVICE_S * square / (2.0 * (1.0 - load))
    return World(f"mg1 {load:g}", f"M/G/1, log-normal, ρ {load:g}", load / SERVICE_S, _mg1(load), mean_s)


def conversations(load: float) -> World:
    """Return sessions of several turns over 16 slots, at a load (offered ÷ saturation) below 1."""
    mean_s = (1.0 - LONG_SHARE) * SHORT_S + LONG_SHARE * LONG_S
    rate = load * SLOTS / mean_s

    def draw(rng: np.random.Generator, runs: int, requests: int) -> WorldTraffic:
        until_s = _CONVERSATIONS_WARM_UP_S + requests / rate
        drawn = [_turns(rng, rate / TURNS, until_s) for _ in range(runs)]
        longest = max(due_s.size for due_s, _, _ in drawn)
        due_s, first_s, end_s = (
            np.stack([np.pad(one[place], (0, longest - one[place].size), constant_values=np.inf) for one in drawn])
            for place in range(3)
        )
        with np.errstate(invalid="ignore"):
            latency_s = first_s - due_s
        return WorldTraffic(rate, due_s, latency_s, end_s, np.full(runs, _CONVERSATIONS_WARM_UP_S))

    return World(f"conversations {load:g}", f"conversations, {SLOTS} slots, ρ {load:g}", rate, draw, None)


def _turns(rng: np.random.Generator, sessions_per_s: float, until_s: float) -> tuple[Floats, Floats, Floats]:
    """Return due times, first tokens and ends of all turns that are due before `until_s`, ordered by due time."""
    count = rng.poisson(sessions_per_s * until_s)
    due = rng.uniform(0.0, until_s, count).tolist()
    heapq.heapify(due)
    most = int(1.3 * TURNS * count) + 1000
    served_s = (rng.exponential(1.0, most) * np.where(rng.random(most) < LONG_SHARE, LONG_S, SHORT_S)).tolist()
    first_s = (FIRST_TOKEN_S * rng.lognormal(0.0, FIRST_TOKEN_SIGMA, most)).tolist()
    goes_on, think_s = (rng.random(most) < 1.0 - 1.0 / TURNS).tolist(), rng.exponential(THINK_S, most).tolist()
    free = [0.0] * SLOTS
    rows: list[tuple[float, float, float]] = []
    while due:  # the earliest turn is always next: a later one cannot add a turn before it
        at = heapq.heappop(due)
        number = len(rows)
        begun = max(free[0], at)
        end = begun + served_s[number]
        heapq.heapreplace(free, end)
        rows.append((at, begun + first_s[number], end))
        if goes_on[number] and end + think_s[number] < until_s:
            heapq.heappush(due, end + think_s[number])
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 3)
    return table[:, 0], table[:, 1], table[:, 2]


UNSEEN: tuple[World, ...] = (
    mg1(0.7),
    conversations(0.6),
    conversations(0.8),
    ar1(0.5),
    ar1(5.0),
    batching(0.7),
    mm1(0.6),
)
"""Worlds, and loads of known worlds, that the rule was not fitted to."""
