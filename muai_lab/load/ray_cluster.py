"""Generators on the machines of a Ray cluster, for loads beyond one machine.

Every machine needs muai_lab installed and must reach the endpoint. `RAY_ADDRESS` chooses the cluster; without it, a
local Ray is started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from muai_lab.errors import RunError
from muai_lab.load.clock_offset import SAME_CLOCK, ClockOffset, measure_offset
from muai_lab.load.crew import GeneratorJob, WorkerLost
from muai_lab.load.ending import ObservedBatch, Relay
from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.generator import LoadProgress, LoadResult, generate

T = TypeVar("T")

_LOOK_INTERVAL_S = 0.25
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Outcomes cross machines as plain values: Ray's exceptions would hide the original ones.
_Outcome = tuple[Literal["ok", "refused", "crashed"], Any]


class RemoteGenerator:
    """The actor: one generator in a thread of its own, besides the thread in which Ray calls these methods.

    No method waits: a call that blocks in an actor was seen to keep Ray from delivering others.
    """

    def __init__(self, job: GeneratorJob, environ: Mapping[str, str]) -> None:
        """environ: variables that the target needs, such as the endpoint's key."""
        self._job = job
        self._environ = environ
        self._progress: LoadProgress | None = None
        self._seen: list[ObservedBatch] = []
        self._relay = Relay(lambda batch: self._seen.append(batch)) if job.plan.watched else None
        self._stopped = False
        self._ready: _Outcome | None = None
        self._result: _Outcome | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[Any] | None = None
        self._start: asyncio.Future[int] | None = None
        threading.Thread(target=self._work, name=job.name, daemon=True).start()

    def ready(self) -> _Outcome | None:
        """Return the outcome of opening the target, None while it opens."""
        return self._ready

    def clock(self) -> int:
        """Return the monotonic clock of this machine, nanoseconds."""
        return time.monotonic_ns()

    def machine(self) -> str:
        """Return an id that is equal on all actors of one machine, which share a clock."""
        return machine_id()

    def start(self, start_ns: int) -> None:
        """Start the load at this time."""
        assert self._loop is not None, "ready() comes first"
        assert self._start is not None, "ready() comes first"
        self._loop.call_soon_threadsafe(self._start.set_result, start_ns)

    def stop(self) -> None:
        """End the load; a second call changes nothing."""
        if self._loop is not None and self._main is not None and not self._stopped and self._result is None:
            self._stopped = True
            self._loop.call_soon_threadsafe(self._main.cancel)

    def end_at(self, end_ns: int) -> None:
        """End the window at this time."""
        if self._relay is not None:
            self._relay.end_at(end_ns)

    def look(self) -> tuple[LoadProgress | None, list[ObservedBatch], bool]:
        """Return the latest progress, the observations since the last call, and True if the load has ended."""
        seen, self._seen = self._seen, []
        return self._progress, seen, self._result is not None

    def result(self) -> _Outcome | None:
        """Return the outcome of the load, None before its end."""
        return self._result

    def _work(self) -> None:
        outcome: _Outcome
        try:
            outcome = ("ok", run_on_fast_loop(self._generate()))
        except RunError as error:
            outcome = ("refused", str(error))
        except asyncio.CancelledError:
            outcome = ("refused", "it was stopped before the load began")
        except Exception:  # noqa: BLE001 (a thread's error would be lost; the coordinator raises it)
            outcome = ("crashed", traceback.format_exc())
        self._ready = self._ready or outcome
        self._result = outcome

    async def _generate(self) -> LoadResult:
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self._start = self._loop.create_future()
        target = self._job.recipe.target(self._environ)
        return await generate(
            self._job.schedule, target, self._job.plan, begin=self._begin, progress=self._told, ending=self._relay
        )

    async def _begin(self) -> int:
        assert self._start is not None, "made before the target opened"
        self._ready = ("ok", None)
        return await self._start

    def _told(self, progress: LoadProgress) -> None:
        self._progress = progress


def machine_id() -> str:
    """Return the id of the running kernel: everything on it, also containers, shares its monotonic clock."""
    return _BOOT_ID.read_text() if _BOOT_ID.exists() else f"{os.uname().nodename}"


class RayWorker:
    """One actor, as the coordinator sees it."""

    def __init__(self, name: str, actor: Any) -> None:
        self._name = name
        self._actor = actor
        self._progress: LoadProgress | None = None
        self._seen: list[ObservedBatch] = []

    @property
    def name(self) -> str:
        return self._name

    @property
    def progress(self) -> LoadProgress | None:
        return self._progress

    async def ready(self) -> None:
        while (outcome := await self._of(self._actor.ready.remote())) is None:  # noqa: ASYNC110 (it is elsewhere)
            await asyncio.sleep(_LOOK_INTERVAL_S)
        self._open(outcome)

    async def clock(self) -> ClockOffset:
        """Measure the offset, unless the actor runs on this machine."""
        if await self._of(self._actor.machine.remote()) == machine_id():
            return SAME_CLOCK
        return await measure_offset(lambda: self._of(self._actor.clock.remote()), time.monotonic_ns)

    def start(self, start_ns: int) -> None:
        self._actor.start.remote(start_ns)

    def seen(self) -> Sequence[ObservedBatch]:
        batches, self._seen = self._seen, []
        return batches

    def end_at(self, end_ns: int) -> None:
        self._actor.end_at.remote(end_ns)

    def stop(self) -> None:
        self._actor.stop.remote()

    async def result(self) -> LoadResult:
        ended = False
        while not ended:
            await asyncio.sleep(_LOOK_INTERVAL_S)
            self._progress, seen, ended = await self._of(self._actor.look.remote())
            self._seen += seen
        result: LoadResult = self._open(await self._of(self._actor.result.remote()))
        return result

    async def close(self) -> None:
        """End the actor's process."""
        import ray

        ray.kill(self._actor)

    async def _of(self, reference: Awaitable[T]) -> T:
        from ray.exceptions import RayActorError

        try:
            return await reference
        except RayActorError as error:
            raise WorkerLost(f"{self._name} is gone from its Ray cluster ({_first_line(error)})") from error

    def _open(self, outcome: _Outcome) -> Any:
        kind, content = outcome
        match kind:
            case "ok":
                return content
            case "refused":
                raise RunError(f"{self._name}: {content}")
            case _:
                raise RuntimeError(f"{self._name} crashed:\n{content}")


def _resources() -> dict[str, float]:
    import ray

    ask: Any = ray.cluster_resources  # untyped in Ray
    resources: dict[str, float] = ask()
    return resources


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def ray_workers(
    jobs: Sequence[GeneratorJob], environ: Mapping[str, str]
) -> tuple[Sequence[RayWorker], Callable[[], None]]:
    """Return one actor for each job, spread over the cluster's machines, and a function that releases Ray.

    Raises RunError if Ray is not installed, cannot be reached, or has fewer CPUs than there are jobs.
    """
    # By default Ray reports its use to its makers, which a benchmark must not do.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise RunError("load.backend=ray needs Ray: pip install 'muai-lab[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RunError(f"Ray cannot be reached: {_first_line(error)}; check RAY_ADDRESS") from error
    let_go = ray.shutdown if ours else lambda: None
    cpus = int(_resources().get("CPU", 0))
    if cpus < len(jobs):
        let_go()
        raise RunError(f"the Ray cluster has {cpus} CPUs for {len(jobs)} load generators; lower load.processes")
    actors: Any = ray.remote(RemoteGenerator)
    actors = actors.options(num_cpus=1, scheduling_strategy="SPREAD")
    return [RayWorker(job.name, actors.remote(job, environ)) for job in jobs], let_go
