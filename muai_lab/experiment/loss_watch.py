"""The watch that ends a probe as soon as its window certainly misses the SLO."""

from __future__ import annotations

import math

import numpy as np

from muai_lab.load.generator import LoadProgress
from muai_lab.load.target import Target
from muai_lab.load.token_counting import awaits_count
from muai_lab.request_record import RequestRecord
from muai_lab.slo import Slo, longest_s, meets
from muai_lab.workload.schedule import Schedule, ScheduledRequest

CLEARLY = 0.05
"""Share of the window's requests by which the misses must exceed the allowed ones before a probe is ended.

A probe that misses the SLO by one short stall continues, and counts with all its requests.
"""

HOPELESSLY = 0.5
"""The same for a probe of the estimate. A long window has a backlog now and then: ending it for that would add bias."""


class LossWatch:
    """Counts the requests of the window that certainly miss the SLO, while the load runs.

    Requests that this process sends are judged one by one, at their end and while they are in flight (`over`). For
    those of other load generators only counts are known: failures, and requests in flight for longer than any request
    may take. Requests that may have been due before the window are not counted.

    Attributes:
        lost: Reason for which the probe is lost; None while it may still meet the SLO.
    """

    def __init__(self, slo: Slo, rate: float, *, start_s: float, length_s: float, margin: float = CLEARLY) -> None:
        """Watch a window.

        Args:
            slo: The SLO of the study.
            rate: Offered requests per second, for the reason.
            start_s: Start of the window, seconds from the start of the load.
            length_s: Length of the window, seconds.
            margin: Share of the window's requests by which the misses must exceed the allowed ones.
        """
        self.lost: str | None = None
        self._slo = slo
        self._rate = rate
        self._margin = margin
        self._start_s = start_s
        self._end_s = start_s + length_s
        self._missed = 0
        self._in_flight: dict[int, tuple[float, RequestRecord]] = {}
        self._before: LoadProgress | None = None  # progress at the start of the window

    def over(self, target: Target) -> Target:
        """Return the target, with every request of the window watched."""
        return _Watched(target, self)

    def begins(self, request: ScheduledRequest, record: RequestRecord) -> None:
        """Note that a request is sent."""
        if request.intended_s is not None and self._start_s <= request.intended_s < self._end_s:
            self._in_flight[request.index] = request.intended_s, record

    def ends(self, request: ScheduledRequest, record: RequestRecord) -> None:
        """Note that a request ended or was aborted."""
        if self._in_flight.pop(request.index, None) is not None:
            self._missed += not may_meet(record, self._slo)

    def look(self, progress: LoadProgress, schedule: Schedule) -> str | None:
        """Return the reason to end the probe, None to continue; see `EndEarly`."""
        if progress.phase == "warmup":
            return None
        if self._before is None:
            self._before = progress
        due_s = schedule.table["intended_s"].to_numpy()
        in_window = np.sort(due_s[(due_s >= self._start_s) & (due_s < self._end_s)])
        longest = longest_s(self._slo, int(schedule.table["max_tokens"].to_numpy().max(initial=1)))
        allowed = math.floor((1.0 - self._slo.quantile) * in_window.size + 1e-9)
        missed = max(
            self._missed + self._overdue(progress.elapsed_s, longest),
            self._counted(progress, self._before, in_window, longest),
        )
        if missed > allowed + self._margin * in_window.size:
            self.lost = (
                f"over capacity: at least {missed} of {in_window.size} requests miss the SLO at {self._rate:.3g} "
                f"requests/s, and {allowed} may"
            )
        return self.lost

    def _overdue(self, elapsed_s: float, longest: float | None) -> int:
        """Return the number of requests in flight that cannot meet the SLO any more."""
        first_s = math.inf if self._slo.ttft_ms is None else self._slo.ttft_ms / 1e3
        all_s = math.inf if longest is None else longest
        return sum(
            elapsed_s - due_s > all_s or (elapsed_s - due_s > first_s and not record.chunk_t_ns)
            for due_s, record in self._in_flight.values()
        )

    def _counted(
        self, progress: LoadProgress, before: LoadProgress, in_window: np.ndarray[tuple[int]], longest: float | None
    ) -> int:
        """Return the number of misses that counts alone prove."""
        failed = progress.failed - before.failed - before.outstanding
        if longest is None:
            return failed
        overdue = int(np.searchsorted(in_window, progress.elapsed_s - longest))
        return max(failed, overdue - (progress.ok + progress.failed - before.ok - before.failed))


class _Watched:
    """A target whose requests are watched."""

    def __init__(self, target: Target, watch: LossWatch) -> None:
        self._target = target
        self._watch = watch

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Target`."""
        return self._target.notes

    @property
    def model(self) -> str | None:
        """Model in the requests to an endpoint; None if the target is no endpoint."""
        model: str | None = getattr(self._target, "model", None)
        return model

    async def open(self, schedule: Schedule) -> None:
        """See `Target`."""
        await self._target.open(schedule)

    async def send(self, request: ScheduledRequest, record: RequestRecord) -> None:
        """See `Target`."""
        self._watch.begins(request, record)
        try:
            await self._target.send(request, record)
        finally:
            self._watch.ends(request, record)

    async def close(self) -> None:
        """See `Target`."""
        await self._target.close()


def may_meet(record: RequestRecord, slo: Slo) -> bool:
    """True if an ended open-loop request meets the SLO, or may do so when the client has counted its tokens."""
    if record.status != "ok":
        return False
    bounds_s = slo.bounds_s
    if awaits_count(record):
        bounds_s.pop("tpot", None)
    tokens = record.total_tokens
    return meets(bounds_s, record.latencies_s, math.nan if tokens is None else tokens)
