"""Times of recorded requests: numbers in some unit, or dates; and doubts about the unit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from muai_lab.settings.workload import TimeUnit
from muai_lab.workload.reading import number, shown

PER_SECOND: dict[TimeUnit, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
# Seconds since 1970 of the years 2001 to 2096: no clock of another unit, and no duration, comes near these numbers.
_EPOCH_S = (1e9, 4e9)
_FARTHEST_S = 1e11
# Mean arrivals per second that one endpoint's traffic has; beyond, the unit is more likely wrong than the traffic.
_USUAL_RATES = (0.01, 200.0)


class Timestamps:
    """Reads the times of one file.

    usual: the format's unit. chosen: `workload.time_unit`. Without it, numbers that can only be times since 1970 are
    read in the unit that makes them so; the file's first number decides.
    """

    def __init__(self, usual: TimeUnit, chosen: TimeUnit | None = None) -> None:
        self.usual = usual
        self._chosen = chosen
        self._unit: TimeUnit | None = chosen

    def seconds(self, value: Any, name: str) -> float:
        """Seconds of a number, a date and time (UTC if it does not say otherwise), or either as a text.

        Raises ValueError for anything else.
        """
        if isinstance(value, datetime):
            return _since_1970(value)
        if isinstance(value, str) and (date := _date(value)) is not None:
            return _since_1970(date)
        try:
            count = number(value, name)
        except ValueError:
            raise ValueError(f"{name} is {shown(value)}, expected a number or a date and time") from None
        if self._unit is None:
            self._unit = _unit_since_1970(count) or self.usual
        seconds = count / PER_SECOND[self._unit]
        if abs(seconds) > _FARTHEST_S:
            raise ValueError(
                f"{name} is {shown(value)}, which is no time in {_UNITS[self._unit]}; see workload.time_unit"
            )
        return seconds

    def doubts(self, times_s: npt.NDArray[np.float64]) -> tuple[str, ...]:
        """Reasons to think that the unit is another. times_s: all times, ascending."""
        if self._unit is None or self._chosen is not None or len(times_s) < 2:
            return ()
        unit = _UNITS[self._unit]
        notes = []
        if self._unit != self.usual:
            notes.append(f"the recorded times are read as {unit} since 1970, not as {_UNITS[self.usual]}")
        span_s = float(times_s[-1] - times_s[0])
        rate = (len(times_s) - 1) / span_s if span_s > 0 else None
        if rate is not None and not _USUAL_RATES[0] <= rate <= _USUAL_RATES[1]:
            finer = rate > _USUAL_RATES[1]
            better = (
                {"ns": "us", "us": "ms"}.get(self._unit, "s")
                if finer
                else {"s": "ms", "ms": "us"}.get(self._unit, "ns")
            )
            notes.append(
                f"the recorded times, read as {unit}, are {rate:.3g} arrivals/s: set workload.time_unit={better} if "
                f"that is wrong, or workload.time_unit={self._unit} if it is right"
            )
        return tuple(notes)


def order_notes(times_s: npt.NDArray[np.float64], where: str) -> tuple[str, ...]:
    """Notes on times that are not ascending, and on many that are equal. times_s: in the order of the file."""
    notes = []
    if back := int(np.count_nonzero(np.diff(times_s) < 0)):
        notes.append(f"{where} is not in the order of time ({back:,} steps back): its requests were sorted")
    shared = len(times_s) - int(np.count_nonzero(np.unique(times_s, return_counts=True)[1] == 1))
    if shared > len(times_s) / 2:
        notes.append(f"{shared:,} of {len(times_s):,} requests of {where} have a recorded time in common with another")
    return tuple(notes)


def _date(text: str) -> datetime | None:
    """A date with or without a time of day; digits alone are a number, not a date."""
    try:
        return None if text.strip().isdecimal() else datetime.fromisoformat(text.strip())
    except ValueError:
        return None


def _since_1970(time: datetime) -> float:
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _unit_since_1970(count: float) -> TimeUnit | None:
    for unit, per_second in PER_SECOND.items():
        if _EPOCH_S[0] <= count / per_second < _EPOCH_S[1]:
            return unit
    return None
