"""The deadlines of requests: a heap from which those of ended requests are removed."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

_SPARE = 64  # deadlines of ended requests that are not worth removing


class Deadlines:
    """Deadlines of requests by name, earliest first.

    deadline_of: the deadline of a request that is still open, None for one that ended or has none. So a request that
    ends, or comes again under its name with another deadline, need not be removed.
    """

    def __init__(self, deadline_of: Callable[[str], float | None]) -> None:
        self._deadline_of = deadline_of
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """Entries held, those of ended requests included."""
        return len(self._heap)

    def add(self, name: str, deadline: float, *, open_requests: int) -> None:
        """Watch a deadline. open_requests: number of requests that have not ended."""
        # Once most of the heap belongs to ended requests, these are dropped; else it would grow with the traffic.
        if len(self._heap) > 2 * open_requests + _SPARE:
            self._heap = [entry for entry in self._heap if self._is_open(entry)]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (deadline, name))

    def passed(self, now: float) -> Iterator[str]:
        """Remove and yield the open requests whose deadline has passed."""
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._is_open(entry):
                yield entry[1]

    def first(self) -> float | None:
        """Return the earliest deadline of an open request; None if there is none."""
        while self._heap and not self._is_open(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _is_open(self, entry: tuple[float, str]) -> bool:
        deadline, name = entry
        return self._deadline_of(name) == deadline
