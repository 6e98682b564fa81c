"""Where the requests of a schedule come from, one arrival after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from muai_lab.workload.arrival import Offsets
from muai_lab.workload.reading import counted
from muai_lab.workload.rows import Unit


@dataclass(frozen=True, slots=True)
class Source:
    """What arrives.

    units: endless, or what there is. times_s: when each of them was due where they come from, in seconds, ascending;
    None if they have no times. notes: what a reader of the results must know, asked when all units were taken.
    time_notes: the same of the times, if they are used. unit_doubts: reasons to think that their unit is another.
    """

    units: Iterator[Unit]
    times_s: Offsets | None = None
    notes: Callable[[], tuple[str, ...]] = tuple
    time_notes: tuple[str, ...] = ()
    unit_doubts: tuple[str, ...] = ()


class Passes:
    """Counts how often a finite collection is gone through."""

    def __init__(self, size: int, noun: str, where: str) -> None:
        self._size = size
        self._noun = noun
        self._where = where
        self._taken = 0

    def places(self) -> Iterator[int]:
        """0, 1, ... size - 1, and again from 0, without end."""
        while True:
            for place in range(self._size):
                self._taken += 1
                yield place

    def pass_over(self) -> None:
        """What stands at the place that came last is of no use, and does not count as taken."""
        self._taken -= 1

    def notes(self) -> tuple[str, ...]:
        """Says so when something was used twice: a cache then helps more than it would with the real thing."""
        if self._taken <= self._size:
            return ()
        held = f"{self._where} holds {counted(self._size, self._noun)}"
        return (f"{held}, and {self._taken:,} were asked for: they repeat",)
