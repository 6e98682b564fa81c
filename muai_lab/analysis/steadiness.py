"""Was the system in a steady state during the measurement?

An open-loop queue that grows means that the offered load is above capacity: latencies then depend on how long the run
took, not on the system. Latencies that fall mean that the warm-up was too short.

The test, per signal: the window is cut into `SLICES` equal slices and the median of each taken, which leaves little of
the correlation between neighbouring requests. The signal has a trend if the Mann-Kendall test (Mann 1945, Kendall 1975;
ties corrected) finds one at `SIGNIFICANCE` *and* the change over the window, by the Theil-Sen slope (Sen 1968), is
large enough to matter. Both are needed: a long run makes any drift significant, a short one makes noise look large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from muai_lab.analysis.window import Window, in_flight
from muai_lab.analysis.wording import duration

SLICES = 12
MIN_SLICES = 8
MIN_REQUESTS = 40
SIGNIFICANCE = 0.005
_POINTS = 480  # times at which counts of requests are sampled

STEADY = "steady"
NOT_STEADY = "not steady"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Trend:
    """change: fitted change from the start to the end of the window, in the signal's unit. p: two-sided."""

    start: float
    change: float
    p: float
    slices: int


@dataclass(frozen=True, slots=True)
class Steadiness:
    """verdict: `steady`, `not steady` or `unknown`; reasons: what was seen, in plain words."""

    verdict: str
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.verdict}: {'; '.join(self.reasons)}" if self.reasons else self.verdict


def trend(t_s: NDArray[np.float64], values: NDArray[np.float64], start_s: float, end_s: float) -> Trend | None:
    """Trend of a signal over the window; None with fewer than `MIN_SLICES` slices that hold a value."""
    inside = (t_s >= start_s) & (t_s < end_s) & np.isfinite(values)
    if not inside.any() or not end_s > start_s:
        return None
    slice_of = np.floor((t_s[inside] - start_s) / (end_s - start_s) * SLICES).astype(np.int64)
    medians = pd.Series(values[inside]).groupby(np.minimum(slice_of, SLICES - 1)).median()
    if len(medians) < MIN_SLICES:
        return None
    x = (medians.index.to_numpy(dtype=np.float64) + 0.5) / SLICES
    y = medians.to_numpy(dtype=np.float64)
    i, j = np.triu_indices(y.size, k=1)
    slope = float(np.median((y[j] - y[i]) / (x[j] - x[i])))
    intercept = float(np.median(y - slope * x))
    return Trend(intercept, slope, mann_kendall_p(y), y.size)


def mann_kendall_p(y: NDArray[np.float64]) -> float:
    """Two-sided p-value of the Mann-Kendall test (normal approximation with continuity and tie correction)."""
    n = y.size
    i, j = np.triu_indices(n, k=1)
    s = float(np.sign(y[j] - y[i]).sum())
    _, ties = np.unique(y, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18.0
    if s == 0.0 or variance <= 0.0:
        return 1.0
    z = (abs(s) - 1.0) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2.0))


def steadiness(requests: pd.DataFrame, waiting: pd.Series | None, window: Window | None) -> Steadiness:
    """Judge the window by four signals: requests in flight, the server's queue, TTFT and TPOT.

    requests: the derived frame of a run. waiting: the server's queue length by time (seconds from the start of the
    load), or None when it was not scraped.
    """
    if window is None or window.duration_s <= 0.0:
        return Steadiness(UNKNOWN, ("no measurement window",))
    measured = requests[requests["in_window"]]
    if len(measured) < MIN_REQUESTS:
        return Steadiness(UNKNOWN, (f"too few requests to tell ({len(measured)}, at least {MIN_REQUESTS} needed)",))
    start, end = window.start_s, window.end_s
    at = start + (np.arange(_POINTS) + 0.5) / _POINTS * (end - start)
    reasons: list[str] = []
    flying = trend(at, in_flight(requests, at), start, end)
    if flying is not None and _matters(flying, relative=0.5, absolute=3.0):
        reasons.append(_counted("requests in flight", flying))
    if waiting is not None and len(waiting):
        queued = trend(waiting.index.to_numpy(dtype=np.float64), waiting.to_numpy(dtype=np.float64), start, end)
        if queued is not None and _matters(queued, relative=0.5, absolute=3.0):
            reasons.append(_counted("requests waiting in the server", queued))
    due = measured["due_s"].to_numpy()
    from_intended = measured["ttft_from_intended_s"]
    first = (from_intended if from_intended.notna().any() else measured["ttft_s"]).to_numpy()
    for name, values in (("TTFT", first), ("TPOT", measured["tpot_s"].to_numpy())):
        drift = trend(due, values, start, end)
        if drift is not None and _matters(drift, relative=0.5, absolute=0.0005):
            before, after = max(drift.start, 0.0), max(drift.start + drift.change, 0.0)
            verb = "rose" if drift.change > 0 else "fell"
            reasons.append(f"{name} {verb} from about {duration(before)} to {duration(after)}")
    return Steadiness(NOT_STEADY, tuple(reasons)) if reasons else Steadiness(STEADY)


def _matters(found: Trend, *, relative: float, absolute: float) -> bool:
    level = abs(found.start + found.change / 2.0)
    return found.p < SIGNIFICANCE and abs(found.change) >= max(absolute, relative * level)


def _counted(what: str, found: Trend) -> str:
    verb = "rose" if found.change > 0 else "fell"
    before, after = max(found.start, 0.0), max(found.start + found.change, 0.0)
    return f"{what} {verb} from about {before:.0f} to {after:.0f}"
