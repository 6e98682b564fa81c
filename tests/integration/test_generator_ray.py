"""Load generators as actors of a local Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.util import find_spec

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

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra `ray`)")

PLAN = LoadPlan(warmup_s=0.0, duration_s=2.0, drain_s=5.0, request_timeout_s=5.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=4, log_to_driver=False, logging_level=logging.ERROR)
        yield
        ray.shutdown()


def settings(url: str, processes: int = 2) -> LabSettings:
    return LabSettings.model_validate(
        {
            "target": {"kind": "endpoint", "url": url, "model": "reference", "ready_timeout_s": 0.0},
            "load": {"backend": "ray", "processes": processes},
        }
    )


async def offered(chosen: LabSettings, schedule: Schedule, told: list[LoadProgress]) -> LoadResult:
    target = HttpTarget.of(chosen)
    return await offer(schedule, target, HttpRecipe(chosen, None), PLAN, chosen.load, progress=told.append)


def test_two_actors_send_one_schedule_on_one_clock(cluster: None) -> None:
    async def main() -> tuple[LoadResult, dict[str, int], list[LoadProgress]]:
        server = ReferenceServer(ReferenceOptions(ttft_ms=5.0))
        told: list[LoadProgress] = []
        result = await offered(settings(await server.start()), schedule_of(200, rate=100.0), told)
        stamps = {stamp.request_id: stamp.received_ns for stamp in server.take_stamps()}
        await server.stop()
        return result, stamps, told

    result, received, told = run_on_fast_loop(main())

    check_sent_when_due(result, received, 200, 100.0)
    assert [worker.requests for worker in result.generator.workers] == [100, 100]
    assert [worker.clock_error_s for worker in result.generator.workers] == [0.0, 0.0]
    assert told
    assert told[-1].sent <= 200


def test_an_endpoint_that_no_actor_reaches_stops_the_load(cluster: None) -> None:
    with pytest.raises(RunError, match=r"generator . of 2: http://127\.0\.0\.1:9/v1/completions.*cannot connect"):
        run_on_fast_loop(offered(settings("http://127.0.0.1:9"), schedule_of(10, rate=10.0), []))


def test_more_generators_than_the_cluster_has_cpus_are_refused(cluster: None) -> None:
    with pytest.raises(RunError, match=r"has 4 CPUs for 5 load generators; lower load\.processes"):
        run_on_fast_loop(offered(settings("http://127.0.0.1:9", processes=5), schedule_of(10, rate=10.0), []))
