"""The source of a schedule's requests, one arrival after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from muai_lab.workload.arrival import Offsets
from muai_lab.workload.reading import counted
from muai_lab.workload.rows import Unit


@dataclass(frozen=True, slots=True)
class Source:
    """The arrivals of a workload.

    Attributes:
        units: The requests and sessions, endless or finite.
        times_s: Recorded times of the units in seconds, ascending, `[units]`; None if they have none.
        notes: Returns notes for a reader of the results; called after all units were taken.
        time_notes: Notes on the times, if they are used.
        unit_doubts: Reasons to assume another unit of the times.
    """

    units: Iterator[Unit]
    times_s: Offsets | None = None
    notes: Callable[[], tuple[str, ...]] = tuple
    time_notes: tuple[str, ...] = ()
    unit_doubts: tuple[str, ...] = ()


class Passes:
    """Counts the passes over a finite collection."""

    def __init__(self, size: int, noun: str, where: str) -> None:
        self._size = size
        self._noun = noun
        self._where = where
        self._taken = 0

    def places(self) -> Iterator[int]:
        """Yield 0, 1, ... size - 1, and again from 0, without end."""
        while True:
            for place in range(self._size):
                self._taken += 1
                yield place

    def pass_over(self) -> None:
        """Do not count the last place as taken: its content is not usable."""
        self._taken -= 1

    def notes(self) -> tuple[str, ...]:
        """Return a note if entries were used twice: a cache then helps more than with real traffic."""
        if self._taken <= self._size:
            return ()
        held = f"{self._where} holds {counted(self._size, self._noun)}"
        return (f"{held}, and {self._taken:,} were asked for: they repeat",)
