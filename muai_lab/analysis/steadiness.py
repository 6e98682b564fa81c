"""The test for a steady state of the system during the measurement.

An open-loop queue that grows means that the offered load is above capacity: latencies then depend on the length of the
run, not on the system. Latencies that fall mean that the warm-up was too short.

The test fits a straight line through evenly spaced values of each signal: counts, or logarithms of latencies. The
standard error of its slope comes from the long-run variance of the residuals (see `dependence`), so a queue that
wanders is no trend. It is widened for a signal whose memory is a large part of the window. There is a trend if the
slope differs from 0 at `SIGNIFICANCE` (Student's t) *and* the change over the window is large enough to matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from muai_lab.analysis.dependence import CONFIDENCE, COSINES, autocorrelation_time, level_over_time, middles_s
from muai_lab.analysis.window import in_flight
from muai_lab.window import Window
from muai_lab.wording import duration

MIN_REQUESTS = 40
SIGNIFICANCE = 0.005
POWER = 0.8
MATTERS = 0.1
"""Smallest change over the window that matters, relative to the level of the signal."""
_MATTERS_REQUESTS, _MATTERS_S = 3.0, 0.0005
_WIDENING = 9.0  # standard errors grow by this times memory ÷ window: 5 % false alarms of M/M/1 at 0.95 in 30 s
_MIN_POINTS = 16

STEADY = "steady"
NOT_STEADY = "not steady"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through one signal.

    Attributes:
        signal: Name of the signal.
        level: The signal in the middle of the window.
        change: Change from the start to the end of the window, in the signal's unit; of its logarithm if `logarithmic`.
        error: Standard error of the change.
        logarithmic: True if the line is through logarithms.
    """

    signal: str
    level: float
    change: float
    error: float
    logarithmic: bool = False

    @property
    def significant(self) -> bool:
        """True if the change is more than chance."""
        return abs(self.change) > _t(1.0 - SIGNIFICANCE / 2.0) * self.error

    @property
    def relative(self) -> float | None:
        """Change over the window ÷ level; None for a level of 0."""
        return self._relative(self.change)

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """95 % interval of `relative`."""
        width = _t(0.5 + CONFIDENCE / 2.0) * self.error
        return self._relative(self.change - width), self._relative(self.change + width)

    @property
    def smallest(self) -> float | None:
        """Smallest relative rise that would be a trend in 4 of 5 such runs."""
        seen = self._relative((_t(1.0 - SIGNIFICANCE / 2.0) + _t(POWER)) * self.error)
        return None if seen is None else max(MATTERS, seen)

    def at(self, position: float) -> float:
        """Return the line at a position in the window, -0.5 (start) to 0.5 (end), in the signal's unit."""
        if self.logarithmic:
            return self.level * math.exp(min(self.change * position, 700.0))
        return max(self.level + self.change * position, 0.0)

    def _relative(self, change: float) -> float | None:
        if self.logarithmic:
            return math.expm1(min(change, 700.0))
        return change / self.level if self.level > 0.0 else None


def _t(probability: float) -> float:
    return float(stdtrit(COSINES, probability))


@dataclass(frozen=True, slots=True)
class Steadiness:
    """The outcome of the test.

    Attributes:
        verdict: `steady`, `not steady` or `unknown`.
        reasons: Trends that matter, in words, or the reason for `unknown`.
        trends: Trend of every signal that was recorded.
    """

    verdict: str
    reasons: tuple[str, ...] = ()
    trends: tuple[Trend, ...] = ()

    def __str__(self) -> str:
        return f"{self.verdict}: {'; '.join(self.reasons)}" if self.reasons else self.verdict


def trend(signal: str, series: NDArray[np.float64], *, logarithmic: bool = False) -> Trend | None:
    """Return the trend of a series that is evenly spaced over the window; None with too few points.

    The waves that estimate the long-run variance begin with the second: the line absorbs the first.

    Args:
        signal: Name of the signal.
        series: Its values, or their logarithms. [points]
        logarithmic: True for logarithms.
    """
    size = series.size
    if size < _MIN_POINTS:
        return None
    position = (np.arange(size) + 0.5) / size - 0.5
    change = float((position @ series) / (position @ position))
    left = series - series.mean() - change * position
    order = np.arange(2, COSINES + 2)[:, None]
    waves = math.sqrt(2.0 / size) * np.cos(math.pi * order * (position + 0.5))
    error = math.sqrt(12.0 / size * float(np.mean((waves @ left) ** 2)))
    error *= 1.0 + _WIDENING * autocorrelation_time(left) / size
    level = float(series.mean())
    return Trend(signal, math.exp(level) if logarithmic else level, change, error, logarithmic)


def steadiness(requests: pd.DataFrame, waiting: pd.Series | None, window: Window | None) -> Steadiness:
    """Judge the window by four signals: requests in flight, the server's queue, TTFT and TPOT.

    Args:
        requests: Rows of `Run.requests`.
        waiting: The server's queue length by time (seconds from the start of the load); None if it was not scraped.
        window: Phases of the load; None if unknown.
    """
    if window is None or window.duration_s <= 0.0:
        return Steadiness(UNKNOWN, ("no measurement window",))
    measured = requests[requests["in_window"]]
    if len(measured) < MIN_REQUESTS:
        return Steadiness(UNKNOWN, (f"too few requests to tell ({len(measured)}, at least {MIN_REQUESTS} needed)",))
    counted = [trend("requests in flight", in_flight(requests, middles_s(window.start_s, window.duration_s)))]
    counted.append(trend("requests waiting in the server", _evenly(waiting, window)))
    first = measured["ttft_from_intended_s"]
    first = first if first.notna().any() else measured["ttft_s"]
    due_s = measured["due_s"].to_numpy(dtype=np.float64)
    timed = [
        trend(
            name,
            level_over_time(values.to_numpy(np.float64), due_s, window.start_s, window.duration_s),
            logarithmic=True,
        )
        for name, values in (("TTFT", first), ("TPOT", measured["tpot_s"]))
    ]
    trends = tuple(found for found in (*counted, *timed) if found is not None)
    reasons = tuple(_reason(found) for found in trends if _matters(found))
    return Steadiness(NOT_STEADY if reasons else STEADY, reasons, trends)


def _evenly(series: pd.Series | None, window: Window) -> NDArray[np.float64]:
    """Return a scraped gauge at evenly spaced times within the window, one for each scrape."""
    if series is None or series.empty:
        return np.empty(0)
    t_s = series.index.to_numpy(dtype=np.float64)
    points = int(np.count_nonzero((t_s >= window.start_s) & (t_s < window.end_s)))
    at_s = window.start_s + (np.arange(points) + 0.5) * (window.duration_s / max(points, 1))
    return np.asarray(np.interp(at_s, t_s, series.to_numpy(dtype=np.float64)), dtype=np.float64)


def _matters(found: Trend) -> bool:
    least = _MATTERS_S if found.logarithmic else _MATTERS_REQUESTS
    moved = abs(found.at(0.5) - found.at(-0.5))
    return found.significant and moved >= max(least, MATTERS * found.level)


def _reason(found: Trend) -> str:
    verb = "rose" if found.change > 0 else "fell"
    before, after = found.at(-0.5), found.at(0.5)
    if found.logarithmic:
        return f"{found.signal} {verb} from about {duration(before)} to {duration(after)}"
    return f"{found.signal} {verb} from about {before:.0f} to {after:.0f}"
