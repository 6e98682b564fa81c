"""How requests to a real stack end, as the metrics count them; and a scraper that does not read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from muai_lab.monitoring.exposition import metrics_app
from muai_lab.monitoring.serving_metrics import ServingMetrics
from muai_lab.request_status import STATUSES
from muai_lab.settings.monitoring import ServerSettings
from tests.unit.server_fakes import Bench, Call, ParrotEngine, in_bench

Work = Callable[[Bench], Awaitable[Any]]


async def answered(bench: Bench) -> None:
    assert (await bench.complete(prompt="abc")).status == 200


async def refused_for_its_length(bench: Bench) -> None:
    assert (await bench.complete(prompt="a" * 100)).status == 400


async def hung_up_on(bench: Bench) -> None:
    bench.engine.gate.clear()
    call, request = bench.start("/v1/completions", prompt="abc")
    await bench.load(running=1)
    call.hang_up()
    await request
    bench.engine.gate.set()


async def broken(bench: Bench) -> None:
    bench.engine.broken = True
    assert (await bench.complete(prompt="abc")).status == 500


async def too_late(bench: Bench) -> None:
    assert (await bench.complete(prompt="abc")).status == 504


@pytest.mark.parametrize(
    ("work", "status", "settings"),
    [
        (answered, "ok", None),
        (refused_for_its_length, "rejected", None),
        (hung_up_on, "cancelled", None),
        (broken, "error", None),
        (too_late, "timeout", ServerSettings(request_timeout_s=1e-9)),
    ],
)
def test_each_end_is_counted_once_under_its_status(work: Work, status: str, settings: ServerSettings | None) -> None:
    metrics = ServingMetrics()
    registry = CollectorRegistry()
    registry.register(metrics)
    observer = metrics.observer("m", "e")

    async def and_close(bench: Bench) -> None:
        await work(bench)
        await bench.host.close()  # everything has been shown to the observer then

    in_bench(and_close, engine=ParrotEngine(), settings=settings, observers=[observer])

    labels = {"model": "m", "engine": "e"}
    counts = {
        name: registry.get_sample_value("inference_requests_total", {**labels, "status": name}) for name in STATUSES
    }
    assert counts == dict.fromkeys(STATUSES, 0) | {status: 1}
    assert registry.get_sample_value("muai_running_sequences", labels) == 0
    assert registry.get_sample_value("muai_waiting_requests", {"model": "m"}) == 0


def test_a_scraper_that_does_not_read_holds_nobody_up() -> None:
    async def run() -> None:
        app = metrics_app(CollectorRegistry(), "/metrics")
        stuck = asyncio.Event()

        async def never(message: Any) -> None:
            stuck.set()
            await asyncio.Event().wait()

        slow = Call(app, "GET", "/metrics")
        slow._send = never  # type: ignore[method-assign]
        blocked = asyncio.create_task(slow.run())
        await stuck.wait()

        async with asyncio.timeout(60):
            assert (await Call(app, "GET", "/metrics").run()).status == 200
        blocked.cancel()

    asyncio.run(run())
