"""Generators in processes of their own on this machine, for loads beyond one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Literal

from muai_lab.errors import RunError
from muai_lab.load.clock_offset import SAME_CLOCK, ClockOffset
from muai_lab.load.crew import GeneratorJob, WorkerLost
from muai_lab.load.ending import ObservedBatch, Relay
from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.generator import LoadProgress, LoadResult, generate

# Longest time for a released worker to end by itself.
_GRACE_S = 5.0

# Messages of a worker: `ready`, then repeatedly `progress` and (if its plan is watched) `seen`, then `result`; or
# `refused` (the text of a RunError) or `crashed` (a traceback) instead of any of them. Messages to it: (`start`, time),
# (`end`, end of the window), (`stop`, None).
_Said = tuple[Literal["ready", "progress", "seen", "result", "refused", "crashed", "gone"], Any]


class ProcessWorker:
    """A spawned process with one generator, and the pipe to it. Each end of the pipe detects the end of the other."""

    def __init__(self, job: GeneratorJob) -> None:
        """Start the process; must be called on a running event loop."""
        context = multiprocessing.get_context("spawn")  # a process with threads and an event loop cannot be forked
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, job), name=job.name, daemon=True)
        self._process.start()
        theirs.close()
        self._name = job.name
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[_Said] = asyncio.Queue()
        self._progress: LoadProgress | None = None
        self._seen: list[ObservedBatch] = []
        threading.Thread(target=self._listen, name=f"{job.name} pipe", daemon=True).start()

    @property
    def name(self) -> str:
        return self._name

    @property
    def progress(self) -> LoadProgress | None:
        return self._progress

    async def ready(self) -> None:
        await self._next("ready")

    async def clock(self) -> ClockOffset:
        """Return no offset: the processes of one machine share a monotonic clock."""
        return SAME_CLOCK

    def start(self, start_ns: int) -> None:
        self._tell("start", start_ns)

    def seen(self) -> Sequence[ObservedBatch]:
        batches, self._seen = self._seen, []
        return batches

    def end_at(self, end_ns: int) -> None:
        self._tell("end", end_ns)

    def stop(self) -> None:
        self._tell("stop", None)

    async def result(self) -> LoadResult:
        result: LoadResult = await self._next("result")
        return result

    async def close(self) -> None:
        """Stop the process and wait for its end; it is killed if it does not end by itself."""
        self.stop()
        await asyncio.to_thread(self._process.join, _GRACE_S)
        if self._process.is_alive():
            self._process.kill()
            await asyncio.to_thread(self._process.join)

    async def _next(self, wanted: Literal["ready", "result"]) -> Any:
        while True:
            kind, content = await self._heard.get()
            if kind == wanted:
                return content
            match kind:
                case "progress":
                    self._progress = content
                case "seen":
                    self._seen.append(content)
                case "refused":
                    raise RunError(content)
                case "crashed":
                    raise RuntimeError(f"{self._name} crashed:\n{content}")
                case _:
                    await asyncio.to_thread(self._process.join, _GRACE_S)
                    raise WorkerLost(f"{self._name} {_how_it_ended(self._process.exitcode)}")

    def _tell(self, what: Literal["start", "end", "stop"], content: int | None) -> None:
        with contextlib.suppress(OSError):  # the process has ended, which `result` reports
            self._pipe.send((what, content))

    def _listen(self) -> None:
        """Pass on the worker's messages, in a thread of its own: a result of many records takes long to read."""
        said: _Said = ("gone", None)
        while True:
            try:
                said = self._pipe.recv()
            except (EOFError, OSError):
                said = ("gone", None)
            try:
                self._loop.call_soon_threadsafe(self._heard.put_nowait, said)
            except RuntimeError:
                return  # the loop is closed
            if said[0] == "gone":
                self._pipe.close()
                return


def _how_it_ended(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status} without a result"


def _work(pipe: Connection, job: GeneratorJob) -> None:
    """Run one generator; the main function of the spawned process."""
    # Ctrl-C in a terminal reaches every process of the group. The coordinator handles it, and sends a message.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = run_on_fast_loop(_generate(pipe, job))
        _say(pipe, ("result", result))
    except RunError as error:
        _say(pipe, ("refused", str(error)))
    except asyncio.CancelledError:
        pass  # stopped before the load began: there is no result
    except BaseException:
        _say(pipe, ("crashed", traceback.format_exc()))
        raise


async def _generate(pipe: Connection, job: GeneratorJob) -> LoadResult:
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None, "a coroutine runs in a task"
    start: asyncio.Future[int] = loop.create_future()
    relay = Relay(lambda batch: _say(pipe, ("seen", batch))) if job.plan.watched else None
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:  # a second one would interrupt the saving of the records
            stopped = True
            main.cancel()

    def obey() -> None:
        try:
            what, content = pipe.recv()
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
            what, content = "stop", None  # the coordinator has ended, so the result is not needed
        if what == "start":
            start.set_result(content)
        elif what == "end" and relay is not None:
            relay.end_at(content)
        else:
            stop()

    async def begin() -> int:
        _say(pipe, ("ready", None))
        return await start

    loop.add_reader(pipe.fileno(), obey)
    # libuv makes its files non-blocking, and a result larger than the pipe's buffer would be cut off.
    os.set_blocking(pipe.fileno(), True)
    loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        return await generate(
            job.schedule,
            job.recipe.target(os.environ),
            job.plan,
            begin=begin,
            progress=lambda moment: _say(pipe, ("progress", moment)),
            ending=relay,
        )
    finally:
        loop.remove_reader(pipe.fileno())


def _say(pipe: Connection, said: _Said) -> None:
    with contextlib.suppress(OSError):  # the coordinator has ended; the closed pipe stops the load
        pipe.send(said)
