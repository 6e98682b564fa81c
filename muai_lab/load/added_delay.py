"""Upper bounds of the load generator's part in each metric of a run.

Let T = S + D be a recorded time, S the server's and D the generator's own delay. The heartbeat of its loop gives the
distribution of D. If D does not depend on S, P(T <= s + d) >= P(S <= s) P(D <= d) for all s and d. So for every share
p, the quantile q of S is at least the quantile q p of T minus the quantile p of D:

    Q_T(q) - Q_S(q)  <=  min over p of  Q_D(p) + Q_T(q) - Q_T(q p).

The shapes of the distributions are arbitrary. A mean is moved by exactly the mean of D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muai_lab.arrays import Floats
from muai_lab.request_record import RequestRecord
from muai_lab.visible import TOLERATED_S, tolerated

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_STEPS = 200
_BELOW = 1.0 - 1e-9  # rounding must not lift a share above a step of the distribution: the bound would be too small
_MOST_GAPS_OF = 2_000  # requests whose chunks are examined


@dataclass(frozen=True, slots=True)
class AddedDelay:
    """The most that the generator can have added to each statistic of one metric.

    figures_s: by `mean`, `p50`, `p90`, `p95`, `p99`. marked: the statistics with more than the tolerated share.
    """

    figures_s: Mapping[str, float]
    marked: tuple[str, ...]


def most_added(times_s: Floats, delays_s: Floats, floor_s: float = TOLERATED_S) -> AddedDelay:
    """Return the bound for a sample of recorded times and a sample of the delays in them; neither may be empty."""
    shares = np.arange(1, _STEPS + 1) / _STEPS
    delay = _quantile(delays_s, shares)
    found = {"mean": float(np.abs(delays_s).mean()) if (delays_s < 0).any() else float(delays_s.mean())}
    of = {"mean": float(times_s.mean())}
    for name, q in QUANTILES.items():
        at = _quantile(times_s, np.append(q * shares * _BELOW, q))
        of[name] = float(at[-1])
        bound = float((delay + at[-1] - at[:-1]).min())
        found[name] = min(max(bound, 0.0), max(of[name], 0.0))
    marked = tuple(name for name, added_s in found.items() if added_s > tolerated(of[name], floor_s))
    return AddedDelay(found, marked)


def added_delays(answered: Sequence[RequestRecord], lateness_s: Floats, *, open_loop: bool) -> dict[str, AddedDelay]:
    """Return the bound of each latency metric by its column; empty without answers or beats.

    answered: successful requests of the window that have content.
    """
    if not answered or not len(lateness_s):
        return {}
    sent = np.array([record.sent_ns for record in answered], dtype=np.int64)
    first = np.array([record.first_content_ns for record in answered], dtype=np.int64)
    last = np.array([record.chunk_t_ns[-1] for record in answered], dtype=np.int64)
    chunks = np.array([len(record.chunk_t_ns) for record in answered], dtype=np.int64)
    once = _thinned(lateness_s)
    # Twice: from the stamp until the request is written and read, and from the answer's bytes until they are read. A
    # server on the same machine waits for a processor as its client does.
    twice = _thinned(np.add.outer(once, once).ravel())
    ttft_s, e2e_s = (first - sent) / 1e9, (last - sent) / 1e9
    found = {"ttft_s": most_added(ttft_s, twice), "e2e_s": most_added(e2e_s, twice)}
    if open_loop:
        due = np.array([record.due_ns for record in answered], dtype=np.int64)
        lag_s = (sent - np.array([record.sendable_ns for record in answered], dtype=np.int64)) / 1e9
        late = np.add.outer(_thinned(lag_s), twice).ravel()
        found["ttft_from_intended_s"] = most_added((first - due) / 1e9, late)
        found["e2e_from_intended_s"] = most_added((last - due) / 1e9, late)
    if (several := chunks > 1).any():
        between = np.subtract.outer(once, once).ravel()  # of two reads, each is late by an amount of its own
        count = (chunks - 1)[several]
        per_gap = float(np.median(count))
        found["tpot_s"] = most_added((last - first)[several] / 1e9 / count, between / per_gap, TOLERATED_S / per_gap)
        found["itl_s"] = most_added(_gaps_s(answered), between)
    return found


def share_of_cycles(closed: Sequence[RequestRecord], lateness_s: Floats) -> float | None:
    """Return the generator's share of the time of a slot's cycle, and so of the throughput of a closed loop.

    A beat counts for half a cycle at most: a long stall stops a slot once, however many beats it spans.
    """
    if not closed or not len(lateness_s):
        return None
    due = np.array([record.due_ns for record in closed], dtype=np.int64)
    sent = np.array([record.sent_ns for record in closed], dtype=np.int64)
    end = np.array([record.stream_end_ns for record in closed], dtype=np.int64)
    cycle_s = float((end - due).mean()) / 1e9
    if cycle_s <= 0:
        return None
    own_s = float((sent - due).mean()) / 1e9 + 2 * float(np.minimum(lateness_s, cycle_s / 2).mean())
    return min(own_s / cycle_s, 1.0)


def _quantile(values: Floats, shares: Floats) -> Floats:
    """Return steps of the distribution, never a value between two: the bound is proved for steps."""
    return np.quantile(values, shares, method="inverted_cdf").astype(np.float64)


def _thinned(values: Floats) -> Floats:
    """Return at most `_STEPS` values of the same distribution, with the largest."""
    if len(values) <= _STEPS:
        return values
    return _quantile(values, np.arange(1, _STEPS + 1) / _STEPS)


def _gaps_s(answered: Sequence[RequestRecord]) -> Floats:
    step = max(len(answered) // _MOST_GAPS_OF, 1)
    gaps = [np.diff(np.frombuffer(record.chunk_t_ns, dtype=np.int64)) for record in answered[::step]]
    return np.concatenate(gaps) / 1e9 if any(map(len, gaps)) else np.zeros(1)
