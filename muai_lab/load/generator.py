"""The load generator: one schedule, one target, one event loop.

Open loop: every request has its own absolute time, and no event of one moves another. Closed loop: a fixed number of
slots, each sending its next request when the last has ended. The due time of a request decides if it belongs to the
warm-up, the measurement or the drain.

Both send single requests and sessions alike: a session's next turn is due a think time after the end of the answer
before it, and carries that answer along. So a session stays with one generator: several of them divide a schedule
between sessions (`Schedule.starts`), never within one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from muai_lab.errors import RunError
from muai_lab.load.cap import CappedTarget
from muai_lab.load.clock_watch import ClockWatch
from muai_lab.load.ending import Ending, Sightings
from muai_lab.load.garbage import rare_garbage_collection
from muai_lab.load.heartbeat import Heartbeat, waiting_clock
from muai_lab.load.machine_load import load_since, read_processes
from muai_lab.load.plan import LoadPlan
from muai_lab.load.precise_timer import PreciseTimer, precise_timer
from muai_lab.load.self_report import GeneratorReport, report_on_generator
from muai_lab.load.sending import Sending
from muai_lab.load.sessions import Sessions, record_of
from muai_lab.load.span import LoadSpan
from muai_lab.load.target import Target
from muai_lab.request_record import RequestRecord
from muai_lab.window import Phase, Window
from muai_lab.workload.schedule import Schedule

# From opening the load to its first due request: the time to start the tasks that watch it.
_LEAD_NS = 20_000_000
_WATCH_INTERVAL_NS = 250_000_000


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """A moment of a running load. elapsed_s counts from the first due time; total_s is without the drain."""

    elapsed_s: float
    total_s: float
    phase: Phase
    sent: int
    ok: int
    failed: int
    outstanding: int


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of a load.

    Attributes:
        records: One per request that was sent or cancelled, all ended, in order of sending.
        window: The phases of the load.
        generator: The report of the generator on itself.
        interrupted: True if the load was cancelled from outside before its end.
        notes: Facts that a reader of the results must know.
        lost: Why records are missing, one entry for each generator that died; a result with any is incomplete.
        exhausted: The resource that the generator ran out of, which ended the load.
    """

    records: tuple[RequestRecord, ...]
    window: Window
    generator: GeneratorReport
    interrupted: bool
    notes: tuple[str, ...]
    lost: tuple[str, ...] = ()
    exhausted: str | None = None


async def generate(
    schedule: Schedule,
    target: Target,
    plan: LoadPlan,
    *,
    clock: Callable[[], int] = time.monotonic_ns,
    cpu_clock: Callable[[], int] = time.thread_time_ns,
    progress: Callable[[LoadProgress], None] | None = None,
    begin: Callable[[], Awaitable[int]] | None = None,
    ending: Ending | None = None,
) -> LoadResult:
    """Open the target, send the schedule to it, and close it.

    Cancelling the task that runs this ends the load: requests in flight are recorded as cancelled, and the result so
    far is returned, marked as interrupted. CancelledError is raised only while the target opens.

    Args:
        schedule: The requests.
        target: The system under test; opened and closed here.
        plan: Durations, in seconds, and the number of slots.
        clock: Monotonic time, nanoseconds.
        cpu_clock: CPU time of the loop's thread, nanoseconds.
        progress: Called several times a second.
        begin: Awaited once the target is open; returns the time, on `clock`, at which the load starts, for generators
            that start together. Without it the load starts at once.
        ending: Decides when the window ends, at the latest after the plan's duration.

    Raises:
        RunError: The schedule is empty, or the target cannot serve it.
    """
    if len(schedule) == 0:
        raise RunError("the schedule is empty: nothing to send; raise arrival.rate, load.duration_s or load.requests")
    if plan.max_in_flight is not None and schedule.open_loop:
        target = CappedTarget(target, plan.max_in_flight, clock)
    await target.open(schedule)
    try:
        main = asyncio.current_task()
        assert main is not None, "a coroutine runs in a task"
        processes = read_processes()
        with (
            rare_garbage_collection() as pauses,
            closing(precise_timer(clock)) as timer,
            waiting_clock() as wait_clock,
        ):
            heartbeat = Heartbeat(timer, clock, cpu_clock, wait_clock)
            span = LoadSpan(clock() + _LEAD_NS if begin is None else await begin(), plan)
            sending = Sending(target, plan.request_timeout_s, timer, end_load=main.cancel)
            watch = _Watch(sending, span, timer, progress, ending)
            load = _Load(schedule, sending, plan, span, timer)
            await load.run(heartbeat, watch)
        report = report_on_generator(
            sending.records,
            load.window(),
            heartbeat.timing(),
            open_loop=schedule.open_loop,
            stall_s=watch.clocks.longest_stall_s,
            garbage_s=pauses.longest_s,
            machine=lambda: load_since(processes),
        )
        return LoadResult(
            records=tuple(sending.records),
            window=load.window(),
            generator=report,
            interrupted=load.interrupted,
            notes=(*target.notes, *load.notes(), *watch.clocks.notes()),
            exhausted=sending.exhausted,
        )
    finally:
        await target.close()


class _Load:
    """The requests of one running load."""

    def __init__(
        self, schedule: Schedule, sending: Sending, plan: LoadPlan, span: LoadSpan, timer: PreciseTimer
    ) -> None:
        main = asyncio.current_task()
        assert main is not None, "a coroutine runs in a task"
        self._main = main
        self._schedule = schedule
        self._sending = sending
        self._plan = plan
        self._span = span
        self._timer = timer
        self._sessions = Sessions(schedule, sending, span, timer)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ran_out = False
        self._ended_ns = span.end_ns
        self._crash: BaseException | None = None
        self.interrupted = False

    async def run(self, heartbeat: Heartbeat, watch: _Watch) -> None:
        watching = asyncio.create_task(watch.run())
        watching.add_done_callback(self._finished)
        heartbeat.begin(self._span.measure_ns)
        try:
            await (self._open_loop() if self._schedule.open_loop else self._closed_loop())
            heartbeat.end()
            await self._drain()
        except asyncio.CancelledError:
            self._main.uncancel()
            self.interrupted = self._sending.exhausted is None
            self._span.end_ns = min(self._span.end_ns, self._timer.clock())
        finally:
            heartbeat.end()
            await self._cancel_rest(watching)
        self._ended_ns = self._timer.clock()
        if self._crash is not None:
            raise self._crash

    def window(self) -> Window:
        """Return the phases as they were."""
        span = self._span
        return Window(span.start_ns, min(span.measure_ns, span.end_ns), span.end_ns, self._ended_ns)

    def notes(self) -> tuple[str, ...]:
        """Return notes on the requests that were not sent."""
        unsent = self._sessions.unsent
        ran_out = [unsent.ran_out(self.window(), len(self._schedule))] if self._ran_out else []
        return (*unsent.notes(), *ran_out)

    async def _open_loop(self) -> None:
        """Start every request at its time; requests that are due together are started together."""
        span = self._span
        for row in self._schedule.starts:
            request = self._schedule.request(row)
            assert request.intended_s is not None, "an open-loop schedule has times"
            record = record_of(request)
            record.intended_ns = span.start_ns + round(request.intended_s * 1e9)
            await self._timer.sleep_until(min(record.intended_ns, span.end_ns))
            if record.intended_ns >= span.end_ns:
                break
            self._start(self._sessions.send(row, request, record))
        await self._timer.sleep_until(span.end_ns)

    async def _closed_loop(self) -> None:
        """Keep every slot busy until the window ends or the schedule has run out."""
        await self._timer.sleep_until(self._span.start_ns)
        rows = iter(self._schedule.starts)
        slots = [self._start(self._slot(rows)) for _ in range(self._plan.concurrency)]
        left_s = (self._span.end_ns - self._timer.clock()) / 1e9
        await asyncio.wait(slots, timeout=max(left_s, 0.0), return_when=asyncio.FIRST_COMPLETED)

    async def _slot(self, rows: Iterator[int]) -> None:
        while (released_ns := self._timer.clock()) < self._span.end_ns:
            row = next(rows, None)
            if row is None:
                self._ran_out = True
                self._span.end_at(released_ns)
                return
            request = self._schedule.request(row)
            record = record_of(request)
            record.released_ns = released_ns
            last = await self._sessions.send(row, request, record)
            if last.status != "ok":
                # A refusal may come without any wait. The other slots, and their answers, must have their turn.
                await asyncio.sleep(0)

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def _drain(self) -> None:
        """Wait for the requests in flight, at most `drain_s` past the window."""
        drain_s = self._plan.drain_s
        if self._tasks:
            left_s = drain_s - (self._timer.clock() - self._span.end_ns) / 1e9
            await asyncio.wait(self._tasks, timeout=max(left_s, 0.0))
        # Due in the window and not answered by now: a miss, like a request that exceeded its own timeout.
        self._sending.on_cancel = ("timeout", f"no end within drain_s = {drain_s:g} s after the window")

    async def _cancel_rest(self, watching: asyncio.Task[None]) -> None:
        """Cancel the requests in flight, and wait until they are recorded."""
        tasks = [watching, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._crash is None:
            self._crash = error  # a fault of the generator, not of a request: end the load, and raise it there
            self._main.cancel()


class _Watch:
    """Reports the progress of a load, checks its clocks, and moves its end once that is decided."""

    def __init__(
        self,
        sending: Sending,
        span: LoadSpan,
        timer: PreciseTimer,
        progress: Callable[[LoadProgress], None] | None,
        ending: Ending | None,
    ) -> None:
        self.clocks = ClockWatch(timer.clock)
        self._sending = sending
        self._span = span
        self._timer = timer
        self._progress = progress
        self._ending = ending
        self._sightings = Sightings()
        if ending is not None:
            ending.begin(span.measure_ns)

    async def run(self) -> None:
        while True:
            now = self._timer.clock()
            if self._ending is not None:
                if self._ending.end_ns is None:
                    self._ending.see(self._sightings.batch(self._sending.records))
                else:
                    self._span.end_at(self._ending.end_ns)
            if self._progress is not None:
                self._progress(self._moment(now))
            wake_ns = now + _WATCH_INTERVAL_NS
            await self._timer.sleep_until(wake_ns)
            self.clocks.woke(wake_ns)

    def _moment(self, now: int) -> LoadProgress:
        span, sending = self._span, self._sending
        return LoadProgress(
            elapsed_s=max(now - span.start_ns, 0) / 1e9,
            total_s=(span.end_ns - span.start_ns) / 1e9,
            phase=span.phase(now),
            sent=len(sending.records),
            ok=sending.ok,
            failed=sending.failed,
            outstanding=len(sending.records) - sending.ok - sending.failed,
        )
