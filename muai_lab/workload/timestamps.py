"""Times of recorded requests: numbers in a unit, or dates; and doubts about the unit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from muai_lab.settings.workload import TimeUnit
from muai_lab.workload.reading import number, shown

PER_SECOND: dict[TimeUnit, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
# Seconds since 1970 of the years 2001 to 2096: clocks of another unit, and durations, are far from these numbers.
_EPOCH_S = (1e9, 4e9)
_FARTHEST_S = 1e11
# Possible clocks of times. The times of a file must share one, else their distances have no meaning.
_ZONED, _ZONELESS, _RELATIVE = frozenset({"zoned"}), frozenset({"zoneless"}), frozenset({"relative"})
_ANY_CLOCK = _ZONED | _ZONELESS | _RELATIVE
# Usual mean arrivals per second of one endpoint; beyond, the unit is probably wrong.
_USUAL_RATES = (0.01, 200.0)


class Timestamps:
    """Reads the times of one file.

    usual: the format's unit. chosen: `workload.time_unit`. Without it, numbers that can only be times since 1970 are
    read in the corresponding unit; the first number of the file decides.
    """

    def __init__(self, usual: TimeUnit, chosen: TimeUnit | None = None) -> None:
        self.usual = usual
        self._chosen = chosen
        self._unit: TimeUnit | None = chosen
        self._clocks: frozenset[str] = _ANY_CLOCK

    def seconds(self, value: Any, name: str) -> float:
        """Return seconds of a number, a date and time (UTC if it does not say otherwise), or either as a text.

        Raises ValueError for other values, and for a time of another origin than those before it.
        """
        date = _date(value) if isinstance(value, str) else value
        if isinstance(date, datetime):
            seconds, clocks = _since_1970(date), _clocks_of(date)
        else:
            seconds = self._counted(value, name)
            clocks = _ZONED | _ZONELESS if _EPOCH_S[0] <= seconds < _EPOCH_S[1] else _RELATIVE
        if not clocks & self._clocks:
            raise ValueError(
                f"{name} is {shown(value)}, but the times before it have another origin: dates with and without a "
                "zone, or dates and numbers that count from elsewhere, have no distance"
            )
        self._clocks &= clocks
        return seconds

    def _counted(self, value: Any, name: str) -> float:
        """Return the seconds of a number; the first one determines the unit."""
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
        """Return reasons to assume another unit; times_s: all times, ascending."""
        if self._unit is None or self._chosen is not None or len(times_s) < 2:
            return ()
        unit = _UNITS[self._unit]
        notes = []
        if self._unit != self.usual:
            notes.append(f"the recorded times are read as {unit} since 1970, not as {_UNITS[self.usual]}")
        span_s = float(times_s[-1] - times_s[0])
        rate = (len(times_s) - 1) / span_s if span_s > 0 else None
        if rate is not None and not _USUAL_RATES[0] <= rate <= _USUAL_RATES[1]:
            better = _neighbour(self._unit, coarser=rate > _USUAL_RATES[1])
            wrong = "convert them to seconds" if better is None else f"set workload.time_unit={better}"
            notes.append(
                f"the recorded times, read as {unit}, are {rate:.3g} arrivals/s: {wrong} if that is wrong, or set "
                f"workload.time_unit={self._unit} if it is right"
            )
        return tuple(notes)


def _neighbour(unit: TimeUnit, *, coarser: bool) -> TimeUnit | None:
    """Return the next coarser or finer unit, None if there is none."""
    units = list(PER_SECOND)
    place = units.index(unit) + (-1 if coarser else 1)
    return units[place] if 0 <= place < len(units) else None


def order_notes(times_s: npt.NDArray[np.float64], where: str) -> tuple[str, ...]:
    """Return notes on times that do not ascend, and on many equal times; times_s: in the order of the file."""
    notes = []
    if back := int(np.count_nonzero(np.diff(times_s) < 0)):
        notes.append(f"{where} is not in the order of time ({back:,} steps back): its requests were sorted")
    shared = len(times_s) - int(np.count_nonzero(np.unique(times_s, return_counts=True)[1] == 1))
    if shared > len(times_s) / 2:
        notes.append(f"{shared:,} of {len(times_s):,} requests of {where} have a recorded time in common with another")
    return tuple(notes)


def _date(text: str) -> datetime | None:
    """Return a date with or without a time of day, None for digits alone, which are a number."""
    try:
        return None if text.strip().isdecimal() else datetime.fromisoformat(text.strip())
    except ValueError:
        return None


def _clocks_of(date: datetime) -> frozenset[str]:
    """Return the possible clocks of a date: without a zone it counts as UTC, and matches no other zone."""
    if date.tzinfo is None:
        return _ZONELESS
    return _ZONED if date.utcoffset() else _ZONED | _ZONELESS


def _since_1970(time: datetime) -> float:
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _unit_since_1970(count: float) -> TimeUnit | None:
    for unit, per_second in PER_SECOND.items():
        if _EPOCH_S[0] <= count / per_second < _EPOCH_S[1]:
            return unit
    return None
