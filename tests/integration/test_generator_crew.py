"""Several generator processes against the reference server: one load, on one clock, from one start."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from muai_lab.errors import RunError
from muai_lab.load.crew import HttpRecipe
from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.generator import LoadProgress, LoadResult
from muai_lab.load.offer import offer
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.plan import LoadPlan
from muai_lab.load.reference_server import ReferenceOptions, ReferenceServer
from muai_lab.settings.lab import LabSettings
from muai_lab.workload.schedule import Schedule
from tests.integration.http_load import check_sent_when_due, schedule_of
from tests.integration.scripted_server import ScriptedServer, status

PLAN = LoadPlan(warmup_s=0.0, duration_s=1.0, drain_s=60.0, request_timeout_s=60.0, concurrency=5)


async def offered(url: str, schedule: Schedule, plan: LoadPlan = PLAN, **how: object) -> LoadResult:
    settings = LabSettings.model_validate(
        {"target": {"kind": "endpoint", "url": url, "model": "reference"}, "load": {"processes": 2}}
    )
    recipe = HttpRecipe(settings, None)
    return await offer(schedule, HttpTarget.of(settings), recipe, plan, settings.load, **how)  # type: ignore[arg-type]


def test_two_processes_send_one_schedule_on_one_clock() -> None:
    async def main() -> tuple[LoadResult, dict[str, int], list[LoadProgress]]:
        server = ReferenceServer(ReferenceOptions(ttft_ms=5.0))
        told: list[LoadProgress] = []
        result = await offered(await server.start(), schedule_of(200, rate=200.0), progress=told.append)
        stamps = {stamp.request_id: stamp.received_ns for stamp in server.take_stamps()}
        await server.stop()
        return result, stamps, told

    result, received, told = run_on_fast_loop(main())

    check_sent_when_due(result, received, 200, 200.0)
    assert [worker.requests for worker in result.generator.workers] == [100, 100]
    assert [worker.name for worker in result.generator.workers] == ["generator 1 of 2", "generator 2 of 2"]
    assert told
    assert told[-1].sent <= 200


def test_the_slots_of_a_closed_loop_are_shared() -> None:
    async def main() -> tuple[LoadResult, int]:
        server = ReferenceServer(ReferenceOptions(ttft_ms=5.0))
        most = 0
        url = await server.start()
        plan = replace(PLAN, duration_s=20.0)  # long before that the requests run out
        load = asyncio.ensure_future(offered(url, schedule_of(400, rate=None), plan))
        while not load.done():
            await asyncio.sleep(0.002)
            most = max(most, len(server.connections))
        await server.stop()
        return await load, most

    result, connections = run_on_fast_loop(main())

    assert {record.status for record in result.records} == {"ok"}
    assert connections == 5
    assert any("the window ends there" in note for note in result.notes)


def test_results_that_no_pipe_holds_at_once_arrive_whole() -> None:
    async def main() -> LoadResult:
        server = ReferenceServer(ReferenceOptions())
        result = await offered(await server.start(), schedule_of(40, rate=80.0, max_tokens=4000))
        await server.stop()
        return result

    result = run_on_fast_loop(main())

    assert [sum(record.chunk_tokens) for record in result.records] == [4000] * 40


def test_a_process_that_dies_is_named_and_the_others_go_on() -> None:
    async def main() -> LoadResult:
        server = ReferenceServer(ReferenceOptions(ttft_ms=5.0))
        killed = False

        def kill_one(moment: LoadProgress) -> None:
            nonlocal killed
            if moment.ok and not killed:
                killed = True
                os.kill(_newest_child(), signal.SIGKILL)

        # Four seconds of load, so that it still goes on when its first answers are told of.
        plan = replace(PLAN, duration_s=4.0)
        result = await offered(await server.start(), schedule_of(200, rate=50.0), plan, progress=kill_one)
        await server.stop()
        return result

    result = run_on_fast_loop(main())

    assert len(result.lost) == 1
    assert "was killed by SIGKILL" in result.lost[0]
    assert [worker.requests for worker in result.generator.workers] == [100]
    assert {record.status for record in result.records} == {"ok"}


def test_an_interrupted_crew_hands_over_what_it_has_and_leaves_nobody_behind() -> None:
    async def main() -> LoadResult:
        server = ReferenceServer(ReferenceOptions(ttft_ms=400.0))
        some_answered = asyncio.Event()

        def progress(moment: LoadProgress) -> None:
            if moment.ok:
                some_answered.set()

        plan = LoadPlan(warmup_s=0.0, duration_s=600.0, drain_s=60.0, request_timeout_s=60.0)
        url = await server.start()
        load = asyncio.ensure_future(offered(url, schedule_of(60_000, rate=100.0), plan, progress=progress))
        await some_answered.wait()
        load.cancel()
        result = await load
        await server.stop()
        return result

    result = run_on_fast_loop(main())

    assert result.interrupted
    assert {record.status for record in result.records} == {"ok", "cancelled"}
    assert len(result.generator.workers) == 2
    assert _children() == []


def test_a_server_that_refuses_stops_the_load_before_it_begins() -> None:
    async def main() -> None:
        async with ScriptedServer([status(404, b'{"error": {"message": "no such model"}}')]) as server:
            await offered(server.url, schedule_of(10, rate=100.0))

    with pytest.raises(RunError, match=r"HTTP 404: no such model; check target\.url"):
        run_on_fast_loop(main())
    assert _children() == []


def _children() -> list[int]:
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def _newest_child() -> int:
    return max(_children())
