"""When requests are given up: a heap of deadlines, out of which those of ended requests are swept."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

_SPARE = 64  # deadlines of ended requests that are not worth sweeping out


class Deadlines:
    """Deadlines of requests by name, earliest first.

    deadline_of: the deadline of a request that is still open, None for one that ended or has none; so a request that
    ends, or comes again under its name with another deadline, need not be taken out.
    """

    def __init__(self, deadline_of: Callable[[str], float | None]) -> None:
        self._deadline_of = deadline_of
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """Entries held, those of ended requests included."""
        return len(self._heap)

    def add(self, name: str, deadline: float, *, open_requests: int) -> None:
        """Watch a deadline; open_requests: how many entries can still be of use."""
        # Once the ended ones are most of the heap, they are dropped; else it would grow with the traffic.
        if len(self._heap) > 2 * open_requests + _SPARE:
            self._heap = [entry for entry in self._heap if self._is_open(entry)]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (deadline, name))

    def passed(self, now: float) -> Iterator[str]:
        """Take out the open requests whose deadline has come."""
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._is_open(entry):
                yield entry[1]

    def first(self) -> float | None:
        """The earliest deadline of an open request."""
        while self._heap and not self._is_open(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _is_open(self, entry: tuple[float, str]) -> bool:
        deadline, name = entry
        return self._deadline_of(name) == deadline
