"""Requests and sessions of a load, sent turn by turn."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

from muai_lab.load.precise_timer import PreciseTimer
from muai_lab.load.sending import Sending
from muai_lab.load.span import LoadSpan
from muai_lab.load.unsent import Unsent
from muai_lab.request_record import RequestRecord
from muai_lab.workload.schedule import Schedule, ScheduledRequest

_TIMEOUT_ROUNDING_S = 0.002  # an event loop's timeout may be this late


class Sessions:
    """Sends single requests, and sessions whose later turns carry the earlier ones along.

    unsent: Counts of the turns that were not sent.
    """

    def __init__(self, schedule: Schedule, sending: Sending, span: LoadSpan, timer: PreciseTimer) -> None:
        self.unsent = Unsent()
        self._schedule = schedule
        self._sending = sending
        self._span = span
        self._timer = timer

    async def send(self, row: int, request: ScheduledRequest, record: RequestRecord) -> RequestRecord:
        """Send a request and the later turns of its session, if it has one.

        A failed turn ends its session: a client does not continue after an error, and there is no answer to carry
        along. So does an answer without text (only reasoning, or a tool call): servers differ in the form in which they
        accept it back.

        Args:
            row: Row of the request in the schedule.
            request: The request, or the first turn of the session.
            record: Its record, with the due time.

        Returns:
            The record of the last request that was sent.
        """
        for left in range(self._schedule.later_turns(row), 0, -1):
            record.answer = []
            await self._sending.send(request, record)
            if record.status != "ok":
                self.unsent.after_failure += left
                record.answer = None
                return record
            said, record.answer = "".join(record.answer), None
            if not said:
                self.unsent.without_text += left
                return record
            earlier = (*request.conversation(), {"role": "assistant", "content": said})
            row += 1
            request = replace(self._schedule.request(row), earlier=earlier)
            due_ns = (record.stream_end_ns or self._timer.clock()) + round((request.think_s or 0.0) * 1e9)
            if not await self._think_until(due_ns):
                self.unsent.at_end += left
                return record
            before, record = record, record_of(request)
            if before.intended_ns is None:
                record.released_ns = due_ns
            else:
                record.intended_ns = due_ns
        await self._sending.send(request, record)
        return record

    async def _think_until(self, due_ns: int) -> bool:
        """Wait for the time of a later turn; False if the load ends before it."""
        span = self._span
        if due_ns < span.end_ns:
            with suppress(TimeoutError):
                async with asyncio.timeout((due_ns - self._timer.clock()) / 1e9 - _TIMEOUT_ROUNDING_S):
                    await span.shortened.wait()
            if due_ns < span.end_ns:
                await self._timer.sleep_until(due_ns)
        return due_ns < span.end_ns


def record_of(request: ScheduledRequest) -> RequestRecord:
    """Return the record of a request that has not been sent."""
    return RequestRecord(
        request.index,
        max_tokens=request.max_tokens,
        session=request.session,
        turn=request.turn,
        prefix_group=request.prefix_group,
        part=request.part,
        asked_prompt_tokens=request.prompt_tokens,
    )
