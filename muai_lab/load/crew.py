"""Several generators that share one load: they get ready, start at the same time, and their results are merged.

`Worker` hides the kind of generator: a process on this machine, or a Ray actor on another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from muai_lab.errors import RunError
from muai_lab.load.clock_offset import ClockOffset
from muai_lab.load.ending import Ending, ObservedBatch
from muai_lab.load.endpoint_access import secret_variables
from muai_lab.load.generator import LoadProgress, LoadResult
from muai_lab.load.merge import Part, merge
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.plan import LoadPlan
from muai_lab.settings.lab import LabSettings
from muai_lab.workload.schedule import Schedule

# From the start message to the start: every message has arrived by then, also across machines.
_LEAD_NS = 300_000_000
_REPORT_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class HttpRecipe:
    """The settings from which a generator elsewhere makes its own target. url: as for `HttpTarget.of`."""

    settings: LabSettings
    url: str | None

    def target(self, environ: Mapping[str, str]) -> HttpTarget:
        """Return a new target."""
        return HttpTarget.of(self.settings, self.url, environ)

    def variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment variables that the target needs: those with the secrets of the endpoint."""
        return {name: environ[name] for name in secret_variables(self.settings.target) if name in environ}


@dataclass(frozen=True, slots=True)
class GeneratorJob:
    """The part of one generator of several."""

    name: str
    recipe: HttpRecipe
    schedule: Schedule
    plan: LoadPlan


class WorkerLost(Exception):
    """A generator ended without a result; str() names it and the reason."""


class Worker(Protocol):
    """One generator of several, as the coordinator sees it."""

    @property
    def name(self) -> str:
        """Its name in reports."""

    @property
    def progress(self) -> LoadProgress | None:
        """Its last report of progress."""

    async def ready(self) -> None:
        """Wait until its target is open; raises RunError if that fails, WorkerLost if the generator has ended."""

    async def clock(self) -> ClockOffset:
        """Measure the offset of its clock; raises WorkerLost."""

    def start(self, start_ns: int) -> None:
        """Start the load at this time of the worker's own clock."""

    def seen(self) -> Sequence[ObservedBatch]:
        """Return the observations of its generator since the last call; empty unless its plan is watched."""

    def end_at(self, end_ns: int) -> None:
        """End the window at this time of the worker's own clock."""

    def stop(self) -> None:
        """End the load; `result` still returns the records so far."""

    async def result(self) -> LoadResult:
        """Wait for the end; raises RunError if an error ended the load, WorkerLost if the generator has ended."""

    async def close(self) -> None:
        """Release the generator, at any stage."""


async def coordinate(
    workers: Sequence[Worker],
    *,
    warmup_s: float = 0.0,
    progress: Callable[[LoadProgress], None] | None = None,
    ending: Ending | None = None,
) -> LoadResult:
    """Run one load with all workers, and merge their results.

    Cancelling the task ends the load early, as in `generate`; cancelled again, it drops the workers. The result's
    `lost` names workers that died during the load.

    Args:
        workers: The generators.
        warmup_s: Warm-up of their plans, seconds.
        progress: Called several times a second with the progress of all.
        ending: Decides when the windows of all end.

    Raises:
        RunError: A worker cannot start, or none has a result.
    """
    beside: list[asyncio.Task[None]] = []
    try:
        try:
            await asyncio.gather(*(worker.ready() for worker in workers))
            offsets = await asyncio.gather(*(worker.clock() for worker in workers))
        except WorkerLost as error:
            raise RunError(f"{error} before the load began") from error
        start_ns = time.monotonic_ns() + _LEAD_NS
        for worker, offset in zip(workers, offsets, strict=True):
            worker.start(offset.theirs(start_ns))
        if progress is not None:
            beside.append(asyncio.create_task(_report(workers, progress)))
        if ending is not None:
            ending.begin(start_ns + round(warmup_s * 1e9))
            beside.append(asyncio.create_task(_watch(workers, offsets, ending)))
        results = await _results(workers)
        for task in beside:
            if task.done():
                task.result()  # raises a fault of the coordinator during the load
        parts = [
            Part(worker.name, result, await _clock_after(worker, offset))
            for worker, result, offset in zip(workers, results, offsets, strict=True)
            if isinstance(result, LoadResult)
        ]
        lost = [str(result) for result in results if isinstance(result, WorkerLost)]
        if not parts:
            raise RunError(f"no load generator brought a result: {'; '.join(lost)}")
        return merge(parts, lost)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*(worker.close() for worker in workers))


async def _results(workers: Sequence[Worker]) -> list[LoadResult | WorkerLost]:
    """Return the result of each worker. If this task is cancelled, the loads end, and their results are awaited."""
    outcomes = asyncio.gather(*(_outcome(worker) for worker in workers))
    stopped = False
    while True:
        try:
            return await asyncio.shield(outcomes)
        except asyncio.CancelledError:
            if stopped or outcomes.cancelled():
                outcomes.cancel()
                raise
            stopped = True
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            for worker in workers:
                worker.stop()


async def _outcome(worker: Worker) -> LoadResult | WorkerLost:
    try:
        return await worker.result()
    except WorkerLost as lost:
        return lost


async def _clock_after(worker: Worker, before: ClockOffset) -> ClockOffset:
    """Return the offset with the drift since, or unchanged if the worker has ended."""
    try:
        return before.and_later(await worker.clock())
    except WorkerLost:
        return before


async def _report(workers: Sequence[Worker], progress: Callable[[LoadProgress], None]) -> None:
    while True:
        await asyncio.sleep(_REPORT_INTERVAL_S)
        heard = [moment for worker in workers if (moment := worker.progress) is not None]
        if heard:
            progress(_together(heard))


async def _watch(workers: Sequence[Worker], offsets: Sequence[ClockOffset], ending: Ending) -> None:
    """Pass on the observations of all workers until the end is decided, then send it to them."""
    while ending.end_ns is None:
        for worker, offset in zip(workers, offsets, strict=True):
            for batch in worker.seen():
                ending.see(batch.on(offset))
        await asyncio.sleep(_REPORT_INTERVAL_S)
    for worker, offset in zip(workers, offsets, strict=True):
        worker.end_at(offset.theirs(ending.end_ns))


def _together(moments: Sequence[LoadProgress]) -> LoadProgress:
    latest = max(moments, key=lambda moment: moment.elapsed_s)
    return replace(
        latest,
        sent=sum(moment.sent for moment in moments),
        ok=sum(moment.ok for moment in moments),
        failed=sum(moment.failed for moment in moments),
        outstanding=sum(moment.outstanding for moment in moments),
    )
