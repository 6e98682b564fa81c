"""A limit of the requests in flight of an open loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from muai_lab.load.target import Target
from muai_lab.request_record import RequestRecord
from muai_lab.workload.schedule import Schedule, ScheduledRequest


class CappedTarget:
    """A target that accepts at most `places` requests at a time; further ones wait in order.

    The wait is the user's choice, not the client's delay: `released_ns` records its end. Times from the intended time
    include it.
    """

    def __init__(self, target: Target, places: int, clock: Callable[[], int]) -> None:
        self._target = target
        self._count = places
        self._places = asyncio.Semaphore(places)
        self._clock = clock
        self._waited = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Target`; and the number of requests that waited."""
        if not self._waited:
            return self._target.notes
        waited = (
            f"{self._waited:,} requests waited for one of {self._count:,} places (load.max_in_flight): their times "
            "count from when they were due"
        )
        return (*self._target.notes, waited)

    async def open(self, schedule: Schedule) -> None:
        """See `Target`."""
        await self._target.open(schedule)

    async def send(self, request: ScheduledRequest, record: RequestRecord) -> None:
        """Wait for a place, then see `Target`."""
        self._waited += self._places.locked()
        async with self._places:
            if record.intended_ns is not None:
                record.released_ns = self._clock()
            await self._target.send(request, record)

    async def close(self) -> None:
        """See `Target`."""
        await self._target.close()
