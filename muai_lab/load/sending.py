"""The requests of a load: each is recorded, sent, limited in time and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from muai_lab.load.own_limits import GeneratorExhausted
from muai_lab.load.precise_timer import PreciseTimer
from muai_lab.load.target import Target
from muai_lab.load.time_limit import TimeLimit
from muai_lab.request_record import RequestRecord
from muai_lab.request_status import RequestStatus
from muai_lab.workload.schedule import ScheduledRequest


class Sending:
    """Sends requests to a target.

    Attributes:
        records: All requests so far, in order of sending.
        ok: Requests that succeeded.
        failed: Requests that ended otherwise.
        on_cancel: Status and reason of a request whose task is cancelled.
        exhausted: The resource that the generator ran out of, None if none.
    """

    def __init__(
        self,
        target: Target,
        timeout_s: float,
        timer: PreciseTimer,
        end_load: Callable[[], object],
    ) -> None:
        """timeout_s: limit of each request; end_load: called once, when the generator is exhausted."""
        self.records: list[RequestRecord] = []
        self.ok = 0
        self.failed = 0
        self.on_cancel: tuple[RequestStatus, str] = ("cancelled", "the run was interrupted")
        self.exhausted: str | None = None
        self._target = target
        self._timeout_s = timeout_s
        self._limit = TimeLimit(timeout_s, timer, timer.clock)
        self._clock = timer.clock
        self._end_load = end_load

    async def send(self, request: ScheduledRequest, record: RequestRecord) -> None:
        """Send one request and wait for its end, of any kind."""
        self.records.append(record)
        try:
            with self._limit:
                await self._target.send(request, record)
        except TimeoutError:
            record.end("timeout", self._clock(), f"no end within request_timeout_s = {self._timeout_s:g} s")
        except GeneratorExhausted as limit:
            record.end("cancelled", self._clock(), str(limit))
            self._exhaust(str(limit))
        except asyncio.CancelledError:
            status, why = self.on_cancel
            record.end(status, self._clock(), why)
            raise
        finally:
            if record.status == "ok":
                self.ok += 1
            else:
                self.failed += 1

    def _exhaust(self, limit: str) -> None:
        """End the load: requests that could not be sent are no result of the server."""
        if self.exhausted is None:
            self.exhausted = limit
            self.on_cancel = ("cancelled", limit)
            self._end_load()
