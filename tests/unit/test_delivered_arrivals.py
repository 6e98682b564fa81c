"""What the generator delivers is what was drawn, for every arrival process, while the target is slow and busy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muai_lab.load.generator import LoadResult, generate
from muai_lab.load.plan import LoadPlan
from muai_lab.workload.schedule import Schedule
from tests.unit.drawing import draw, written
from tests.unit.test_load_sessions import Speaker
from tests.unit.virtual_time import VirtualTimeLoop, run_virtual

LOAD = {"warmup_s": 5.0, "duration_s": 35.0}
PLAN = LoadPlan(warmup_s=5.0, duration_s=35.0, drain_s=60.0, request_timeout_s=60.0)
ARRIVALS: dict[str, dict[str, Any]] = {
    "constant": {"rate": 20.0},
    "poisson": {"rate": 20.0},
    "gamma": {"rate": 20.0, "cv": 5.0},
    "ramp": {"rate": 1.0, "end_rate": 40.0, "ramp_s": 30.0},
    "steps": {"step_rates": [2.0, 40.0, 0.0, 10.0], "step_s": 10.0},
    "diurnal": {"rate": 20.0, "amplitude": 1.0, "period_s": 20.0},
    "trace": {"trace_rate": 20.0},
}


@pytest.fixture
def recorded(tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.gamma(0.1, 30.0, 800))
    rows = [f"{time:.3f},GPT-4,20,5,25,API log" for time in times]
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    return {"kind": "burstgpt", "path": written(tmp_path / "burst.csv", head, *rows)}


def delivered(schedule: Schedule) -> LoadResult:
    async def main(loop: VirtualTimeLoop) -> LoadResult:
        target = Speaker(loop, lambda index: 0.5 + index % 7)
        return await generate(schedule, target, PLAN, clock=loop.now_ns, cpu_clock=lambda: 0)

    return run_virtual(main)


@pytest.mark.parametrize("kind", ARRIVALS)
def test_every_request_leaves_at_its_time(kind: str, recorded: dict[str, Any]) -> None:
    schedule = draw(recorded, arrival={"kind": kind, **ARRIVALS[kind]}, load=LOAD)

    result = delivered(schedule)

    sent_s = np.array([(record.sent_ns or 0) - result.window.load_start_ns for record in result.records]) / 1e9
    intended_s = schedule.table["intended_s"].to_numpy()
    assert len(sent_s) == len(intended_s) > 100
    np.testing.assert_allclose(sent_s, intended_s, atol=1e-6)
    np.testing.assert_array_equal(np.histogram(sent_s, 40, (0, 40))[0], np.histogram(intended_s + 1e-9, 40, (0, 40))[0])
