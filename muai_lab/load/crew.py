"""Several generators that share one load: they get ready, start at one moment, and their results are merged.

How a generator runs (a process here, an actor of Ray elsewhere) is behind `Worker`.
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

# From telling everybody when to start to the start: every message has arrived by then, across machines too.
_LEAD_NS = 300_000_000
_REPORT_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class HttpRecipe:
    """From what a generator elsewhere makes its own target. url: as for `HttpTarget.of`."""

    settings: LabSettings
    url: str | None

    def target(self, environ: Mapping[str, str]) -> HttpTarget:
        """A target of one's own."""
        return HttpTarget.of(self.settings, self.url, environ)

    def variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Those of the environment that the target needs: the ones with the endpoint's secrets."""
        return {name: environ[name] for name in secret_variables(self.settings.target) if name in environ}


@dataclass(frozen=True, slots=True)
class GeneratorJob:
    """What one generator of several does."""

    name: str
    recipe: HttpRecipe
    schedule: Schedule
    plan: LoadPlan


class WorkerLost(Exception):
    """A generator is gone without a result; str() says which and how."""


class Worker(Protocol):
    """One generator of several, seen from the one who leads them."""

    @property
    def name(self) -> str:
        """As reports call it."""

    @property
    def progress(self) -> LoadProgress | None:
        """The last that was heard of its load."""

    async def ready(self) -> None:
        """Its target is open. Raises RunError when it cannot be, WorkerLost when the generator is gone."""

    async def clock(self) -> ClockOffset:
        """Its clock against ours, measured now. Raises WorkerLost."""

    def start(self, start_ns: int) -> None:
        """Let the load start at this time of the worker's own clock."""

    def seen(self) -> Sequence[ObservedBatch]:
        """What its generator saw since this was last asked; nothing unless its plan is watched."""

    def end_at(self, end_ns: int) -> None:
        """Let the window end at this time of the worker's own clock."""

    def stop(self) -> None:
        """End the load; what was recorded still comes as its result."""

    async def result(self) -> LoadResult:
        """Wait for the end. Raises RunError for what ended the load there, WorkerLost when the generator is gone."""

    async def close(self) -> None:
        """Let the generator go, however far it got."""


async def lead(
    workers: Sequence[Worker],
    *,
    warmup_s: float = 0.0,
    progress: Callable[[LoadProgress], None] | None = None,
    ending: Ending | None = None,
) -> LoadResult:
    """Run one load with all of them, and merge what they bring.

    warmup_s: of their plans. ending: decides when the windows of all of them end.

    Cancelling the task ends the load early, as in `generate`; cancelled again, it drops the workers. A worker that dies
    under way is named in the result's `lost`; RunError is raised when none brings anything, or one cannot start.
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
                task.result()  # a fault of ours while the load ran
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
    """What each worker brings. When we are cancelled, the loads are ended and their results still awaited."""
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
    """The offset with the drift since; a worker that is gone by now told what it had."""
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
    """Hand over what all of them see until the end is decided, and tell them."""
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
