"""The queue of requests that wait for a slot."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

AGING_S = 10.0
"""Seconds of waiting that offset one step of priority."""


class _Waiting(Protocol):
    @property
    def queued_at(self) -> float: ...

    @property
    def priority(self) -> int: ...


T = TypeVar("T", bound=_Waiting)


class WaitingQueue(Generic[T]):
    """First-in, first-out within a priority; a lower priority value goes first.

    No request starves: its place is its arrival time plus `AGING_S` seconds for each step of priority, so a request
    that arrived early enough goes first. That place never changes, hence a heap. Cancelled entries stay in the heap
    until they reach its top or are most of it.
    """

    def __init__(self) -> None:
        self._by_age: OrderedDict[str, T] = OrderedDict()
        self._heap: list[tuple[float, int, str]] = []
        self._places: dict[str, int] = {}
        self._count = 0
        self._first = 0

    def __len__(self) -> int:
        return len(self._by_age)

    def __contains__(self, name: object) -> bool:
        return name in self._by_age

    def __iter__(self) -> Iterator[str]:
        """Names, oldest first."""
        return iter(self._by_age)

    def get(self, name: str) -> T | None:
        """Return the entry of that name; None if it is not here."""
        return self._by_age.get(name)

    def add(self, name: str, entry: T) -> None:
        """Add an entry; `queued_at` must not decrease from one to the next."""
        self._count += 1
        self._by_age[name] = entry
        self._push(name, entry, self._count)

    def put_back(self, entries: Iterable[tuple[str, T]]) -> None:
        """Add entries again that were removed; each gets the place that it had."""
        back = sorted(entries, key=lambda item: item[1].queued_at)
        old, self._by_age = self._by_age, OrderedDict()
        self._by_age.update(heapq.merge(back, old.items(), key=lambda item: item[1].queued_at))
        for name, entry in reversed(back):
            self._first -= 1  # before those of the same age
            self._push(name, entry, self._first)

    def pop(self, name: str) -> T | None:
        """Remove an entry and return it; None if it is not here."""
        entry = self._by_age.pop(name, None)
        if entry is not None:
            del self._places[name]
            if len(self._heap) > 2 * len(self._by_age) + 64:
                self._heap = [place for place in self._heap if self._is_live(place)]
                heapq.heapify(self._heap)
        return entry

    def next(self) -> T:
        """Return the entry whose turn it is. Raises KeyError if the queue is empty."""
        while self._heap and not self._is_live(self._heap[0]):
            heapq.heappop(self._heap)
        if not self._heap:
            raise KeyError("the queue is empty")
        return self._by_age[self._heap[0][2]]

    def oldest(self) -> T:
        """Return the entry that has waited longest. Raises KeyError if the queue is empty."""
        for entry in self._by_age.values():
            return entry
        raise KeyError("the queue is empty")

    def _push(self, name: str, entry: T, place: int) -> None:
        self._places[name] = place
        heapq.heappush(self._heap, (entry.queued_at + entry.priority * AGING_S, place, name))

    def _is_live(self, place: tuple[float, int, str]) -> bool:
        return self._places.get(place[2]) == place[1]
