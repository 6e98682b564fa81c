"""A bound on the requests in flight of an open loop."""

from __future__ import annotations

import asyncio

from muai_lab.load.cap import CappedTarget
from muai_lab.request_record import RequestRecord
from muai_lab.workload.schedule import Schedule, ScheduledRequest


class Counting:
    """A target that counts what it has in flight."""

    notes = ("theirs",)

    def __init__(self) -> None:
        self.now = self.most = 0

    async def open(self, schedule: Schedule) -> None: ...

    async def send(self, request: ScheduledRequest, record: RequestRecord) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        record.end("ok", 0)

    async def close(self) -> None: ...


def test_no_more_than_the_places_are_in_flight_and_the_wait_is_recorded_and_told() -> None:
    inner, ticks = Counting(), iter(range(100, 200))
    records = [RequestRecord(i, max_tokens=1, intended_ns=i) for i in range(6)]

    async def main() -> CappedTarget:
        target = CappedTarget(inner, 2, lambda: next(ticks))
        request = ScheduledRequest(0, 0.0, "x", None, 1, 1)
        await asyncio.gather(*(target.send(request, record) for record in records))
        return target

    target = asyncio.run(main())

    assert inner.most == 2
    assert all(record.sendable_ns == record.released_ns for record in records)
    assert [record.due_ns for record in records] == list(range(6))
    assert "4 requests waited for one of 2 places" in target.notes[-1]
