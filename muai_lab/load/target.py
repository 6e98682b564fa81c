"""The system that a load is sent to."""

from __future__ import annotations

from typing import Protocol

from muai_lab.request_record import RequestRecord
from muai_lab.workload.schedule import Schedule, ScheduledRequest


class Target(Protocol):
    """Something that completes prompts and streams the answer."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Facts about this target that a reader of the results must know; known once it is open."""

    async def open(self, schedule: Schedule) -> None:
        """Connect and detect the supported features; raises RunError if the target cannot serve this schedule."""

    async def send(self, request: ScheduledRequest, record: RequestRecord) -> None:
        """Send one request and read its answer to the end, filling in `record`.

        Ends the record with `ok`, `error` or `rejected`, and raises nothing for a request that fails. Timeouts and
        cancellation come from outside, as `asyncio.CancelledError`; the code that cancels ends the record.
        """

    async def close(self) -> None:
        """Close connections; harmless if called twice or before `open`."""
