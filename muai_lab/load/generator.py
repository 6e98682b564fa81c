"""The load generator: one schedule, one target, one event loop.

Open loop: every request has its own absolute time, and nothing that happens to one moves another. Closed loop: a
fixed number of slots, each sending its next request when the last has ended. Warm-up, measurement and drain are told
apart by when a request was due.

Both send single requests and sessions alike: a session's next turn is due a think time after the end of the answer
before it, and carries that answer along. So a session stays with one generator: several of them divide a schedule
between sessions (`Schedule.starts`), never within one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

from muai_lab.errors import RunError
from muai_lab.load.cap import CappedTarget
from muai_lab.load.clock_watch import ClockWatch
from muai_lab.load.ending import Ending, Sightings
from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.garbage import GarbagePauses, rare_garbage_collection
from muai_lab.load.heartbeat import Heartbeat, waiting_clock
from muai_lab.load.machine_load import MachineLoad, load_since, read_processes
from muai_lab.load.plan import LoadPlan
from muai_lab.load.precise_timer import PreciseTimer, precise_timer
from muai_lab.load.self_report import GeneratorReport, report_on_generator
from muai_lab.load.sending import Sending
from muai_lab.load.target import Target
from muai_lab.load.unsent import Unsent
from muai_lab.request_record import RequestRecord
from muai_lab.window import Phase, Window
from muai_lab.workload.schedule import Schedule, ScheduledRequest

# From opening the load to its first due request: the time to start the tasks that watch it.
_LEAD_NS = 20_000_000
_WATCH_INTERVAL_NS = 250_000_000
_TIMEOUT_ROUNDING_S = 0.002  # an event loop's timeout may be this late


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
    """What came of a load.

    records: one per request that was sent or given up, all ended, in order of sending. interrupted: cancelled from
    outside before its end. lost: why records are missing, one entry for each generator that died; a result with any is
    a part of one. exhausted: what the generator ran out of, which ended the load. notes: what a reader of the results
    must know.
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

    Cancelling the task that runs this ends the load: what is under way is recorded as cancelled, and the result so
    far is returned, marked as interrupted, instead of CancelledError (which is raised only while the target opens).
    Raises RunError for an empty schedule or a target that cannot serve it. clock, cpu_clock: nanoseconds; monotonic
    time and CPU time of the loop's thread. begin: awaited once the target is open; gives the time, on `clock`, at which
    the load starts, for generators that start together. Without it the load starts at once. ending: decides when the
    window ends, at the latest after the plan's duration.
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
            start_ns = clock() + _LEAD_NS if begin is None else await begin()
            load = _Load(main, schedule, target, plan, clock, timer, heartbeat, progress, start_ns, ending)
            await load.run()
        return load.result(pauses, machine=lambda: load_since(processes))
    finally:
        await target.close()


class _Load:
    """The state of one running load."""

    def __init__(
        self,
        main: asyncio.Task[Any],
        schedule: Schedule,
        target: Target,
        plan: LoadPlan,
        clock: Callable[[], int],
        timer: PreciseTimer,
        heartbeat: Heartbeat,
        progress: Callable[[LoadProgress], None] | None,
        start_ns: int,
        ending: Ending | None,
    ) -> None:
        self.main = main
        self.schedule = schedule
        self.target = target
        self.plan = plan
        self.clock = clock
        self.timer = timer
        self.heartbeat = heartbeat
        self.progress = progress
        self.sending = Sending(target, plan.request_timeout_s, timer, clock, end_load=main.cancel)
        self.tasks: set[asyncio.Task[None]] = set()
        self.ran_out = False
        self.shortened = asyncio.Event()  # the end has moved to the front
        self.unsent = Unsent()
        self.clocks = ClockWatch(clock)
        self.start_ns = start_ns
        self.measure_ns = self.start_ns + round(plan.warmup_s * 1e9)
        self.end_ns = self.measure_ns + round(plan.duration_s * 1e9)  # moves to the front when the schedule runs out
        self.ending = ending
        self.sightings = Sightings()
        if ending is not None:
            ending.begin(self.measure_ns)
        self.interrupted = False
        self.ended_ns = self.end_ns
        self.crash: BaseException | None = None

    async def run(self) -> None:
        watch = asyncio.create_task(self._watch())
        watch.add_done_callback(self._finished)
        self.heartbeat.begin(self.measure_ns)
        try:
            await (self._open_loop() if self.schedule.open_loop else self._closed_loop())
            self.heartbeat.end()
            await self._drain()
        except asyncio.CancelledError:
            self.main.uncancel()
            self.interrupted = self.sending.exhausted is None
            self.end_ns = min(self.end_ns, self.clock())
        finally:
            self.heartbeat.end()
            await self._give_up(watch)
        self.ended_ns = self.clock()
        if self.crash is not None:
            raise self.crash

    def result(self, pauses: GarbagePauses, machine: Callable[[], MachineLoad]) -> LoadResult:
        """All that came of it. machine: asked who used the processors, if the generator was late."""
        window = Window(self.start_ns, min(self.measure_ns, self.end_ns), self.end_ns, self.ended_ns)
        report = report_on_generator(
            self.sending.records,
            window,
            self.heartbeat.timing(),
            open_loop=self.schedule.open_loop,
            stall_s=self.clocks.longest_stall_s,
            garbage_s=pauses.longest_s,
            machine=machine,
        )
        ran_out = [self.unsent.ran_out(window, len(self.schedule))] if self.ran_out else []
        return LoadResult(
            records=tuple(self.sending.records),
            window=window,
            generator=report,
            interrupted=self.interrupted,
            notes=(*self.target.notes, *self.unsent.notes(), *ran_out, *self.clocks.notes()),
            exhausted=self.sending.exhausted,
        )

    async def _open_loop(self) -> None:
        """Start every request at its time. Requests that are due together are started together."""
        for row in self.schedule.starts:
            request = self.schedule.request(row)
            assert request.intended_s is not None, "an open-loop schedule has times"
            record = _record_of(request)
            record.intended_ns = self.start_ns + round(request.intended_s * 1e9)
            await self.timer.sleep_until(min(record.intended_ns, self.end_ns))
            if record.intended_ns >= self.end_ns:
                break
            self._start(self._send_session(row, request, record))
        await self.timer.sleep_until(self.end_ns)

    async def _closed_loop(self) -> None:
        """Keep every slot busy until the window ends or the schedule has run out."""
        await self.timer.sleep_until(self.start_ns)
        rows = iter(self.schedule.starts)
        slots = [self._start(self._slot(rows)) for _ in range(self.plan.concurrency)]
        left_s = (self.end_ns - self.clock()) / 1e9
        await asyncio.wait(slots, timeout=max(left_s, 0.0), return_when=asyncio.FIRST_COMPLETED)

    async def _slot(self, rows: Iterator[int]) -> None:
        while (released_ns := self.clock()) < self.end_ns:
            row = next(rows, None)
            if row is None:
                self.ran_out = True
                self._end_at(released_ns)
                return
            request = self.schedule.request(row)
            record = _record_of(request)
            record.released_ns = released_ns
            last = await self._send_session(row, request, record)
            if last.status != "ok":
                # A refusal may come without any wait. The other slots, and what they wait for, must have their turn.
                await asyncio.sleep(0)

    async def _send_session(self, row: int, request: ScheduledRequest, record: RequestRecord) -> RequestRecord:
        """Send a request and the later turns of its session, if it has one; returns the last record.

        A turn that fails ends its session: nobody asks on after an error, and there is no answer to carry along. So
        does an answer without text (only reasoning, or a tool call): servers differ in how they want it back.
        """
        for left in range(self.schedule.later_turns(row), 0, -1):
            record.answer = []
            await self.sending.send(request, record)
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
            request = replace(self.schedule.request(row), earlier=earlier)
            due_ns = (record.stream_end_ns or self.clock()) + round((request.think_s or 0.0) * 1e9)
            if not await self._think_until(due_ns):
                self.unsent.at_end += left
                return record
            before, record = record, _record_of(request)
            if before.intended_ns is None:
                record.released_ns = due_ns
            else:
                record.intended_ns = due_ns
        await self.sending.send(request, record)
        return record

    async def _think_until(self, due_ns: int) -> bool:
        """Wait for a later turn's time; False when the load ends before it."""
        if due_ns < self.end_ns:
            with suppress(TimeoutError):
                async with asyncio.timeout((due_ns - self.clock()) / 1e9 - _TIMEOUT_ROUNDING_S):
                    await self.shortened.wait()
            if due_ns < self.end_ns:
                await self.timer.sleep_until(due_ns)
        return due_ns < self.end_ns

    def _end_at(self, end_ns: int) -> None:
        """End the window at this time, unless it ends before."""
        if end_ns < self.end_ns:
            self.end_ns = end_ns
            self.shortened.set()

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def _drain(self) -> None:
        """Wait for what is under way, at most `drain_s` past the window."""
        if self.tasks:
            left_s = self.plan.drain_s - (self.clock() - self.end_ns) / 1e9
            await asyncio.wait(self.tasks, timeout=max(left_s, 0.0))
        # Due in the window and not answered by now: a miss, like a request that exceeded its own timeout.
        self.sending.giving_up = ("timeout", f"no end within drain_s = {self.plan.drain_s:g} s after the window")

    async def _give_up(self, watch: asyncio.Task[None]) -> None:
        """Cancel what is still under way and wait until it is recorded."""
        tasks = [watch, *self.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self.crash is None:
            self.crash = error  # a fault of ours, not of a request: end the load, and raise it there
            self.main.cancel()

    async def _watch(self) -> None:
        """Report progress, look whether the clocks go evenly, and ask for the end of a window that is watched."""
        while True:
            now = self.clock()
            if self.ending is not None:
                if self.ending.end_ns is None:
                    self.ending.see(self.sightings.batch(self.sending.records))
                else:
                    self._end_at(self.ending.end_ns)
            if self.progress is not None:
                self.progress(self._progress(now))
            wake_ns = now + _WATCH_INTERVAL_NS
            await self.timer.sleep_until(wake_ns)
            self.clocks.woke(wake_ns)

    def _progress(self, now: int) -> LoadProgress:
        return LoadProgress(
            elapsed_s=max(now - self.start_ns, 0) / 1e9,
            total_s=(self.end_ns - self.start_ns) / 1e9,
            phase="warmup" if now < self.measure_ns else "measure" if now < self.end_ns else "drain",
            sent=len(self.sending.records),
            ok=self.sending.ok,
            failed=self.sending.failed,
            outstanding=len(self.sending.records) - self.sending.ok - self.sending.failed,
        )


def _record_of(request: ScheduledRequest) -> RequestRecord:
    return RequestRecord(
        request.index,
        max_tokens=request.max_tokens,
        session=request.session,
        turn=request.turn,
        prefix_group=request.prefix_group,
        part=request.part,
        asked_prompt_tokens=request.prompt_tokens,
    )


def run_load(
    schedule: Schedule, target: Target, plan: LoadPlan, *, progress: Callable[[LoadProgress], None] | None = None
) -> LoadResult:
    """`generate` on an event loop of its own; Ctrl-C ends the load and returns what was recorded until then."""
    return run_on_fast_loop(generate(schedule, target, plan, progress=progress))
