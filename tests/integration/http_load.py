"""Small loads that tests send over HTTP, in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.generator import LoadResult, generate
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.plan import LoadPlan
from muai_lab.load.records import records_table
from muai_lab.load.reference_server import ReferenceOptions, ReferenceServer
from muai_lab.request_record import RequestRecord
from muai_lab.workload.schedule import Schedule, ScheduledRequest
from tests.integration.scripted_server import ScriptedServer

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    return run_on_fast_loop(main)


def schedule_of(count: int, *, rate: float | None = None, max_tokens: int = 4) -> Schedule:
    times = [None if rate is None else index / rate for index in range(count)]
    return Schedule.of([ScheduledRequest(i, times[i], "one two three", None, 3, max_tokens) for i in range(count)])


def closed_plan(concurrency: int = 4, *, timeout_s: float = 60.0) -> LoadPlan:
    return LoadPlan(warmup_s=0.0, duration_s=30.0, drain_s=60.0, request_timeout_s=timeout_s, concurrency=concurrency)


def open_plan() -> LoadPlan:
    return LoadPlan(warmup_s=0.0, duration_s=1.0, drain_s=60.0, request_timeout_s=60.0)


async def measure(
    options: ReferenceOptions, schedule: Schedule, plan: LoadPlan, **target: Any
) -> tuple[LoadResult, ReferenceServer]:
    server = ReferenceServer(options)
    url = await server.start()
    try:
        return await generate(schedule, HttpTarget(url, model="reference", **target), plan), server
    finally:
        await server.stop()


async def one_request(server: ScriptedServer, request: ScheduledRequest | None = None, **target: Any) -> RequestRecord:
    """Open a target on a server that starts well, and send it one request."""
    chosen = HttpTarget(server.url, **{"model": "m", **target})
    request = request or schedule_of(1).request(0)
    await chosen.open(Schedule.of([request]))
    try:
        record = RequestRecord(0, max_tokens=4, intended_ns=0)
        await chosen.send(request, record)
    finally:
        await chosen.close()
    return record


async def against(serve: Callable[..., Coroutine[Any, Any, None]], schedule: Schedule) -> LoadResult:
    """A load of one slot against a server that is one function."""

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)

    async with await asyncio.start_server(quietly, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return await generate(schedule, HttpTarget(url, model="m"), closed_plan(1))


def check_sent_when_due(result: LoadResult, received_ns: dict[str, int], count: int, rate: float) -> None:
    """All requests of a schedule of that rate ended well; each was due, sent and received in this order.

    received_ns: when the server got each, by its own clock.
    """
    table = records_table(result.records, result.window)
    assert table["index"].to_pylist() == list(range(count))
    assert set(table["status"].to_pylist()) == {"ok"}
    for record in result.records:
        due_s = (record.due_ns - result.window.load_start_ns) / 1e9
        assert due_s == pytest.approx(record.index / rate, abs=1e-6)
        assert record.sent_ns is not None
        assert record.due_ns <= record.sent_ns <= received_ns[str(record.index)]
