"""The tuner's place in the stack: when it begins, what it begins with, and when it ends. On an engine that counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from muai_lab.settings.schema import BatcherSettings, OptimizationSettings, TunerSettings
from muai_lab.stack.events import Tuned
from muai_lab.stack.online.knobs import Values
from muai_lab.stack.online.memory import TunerMemory
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.stack import InferenceStack
from tests.unit.counting_engine import DEADLINE_S, CountingEngine
from tests.unit.stack_on_counting import Recorder, stack_on, until

pytestmark = pytest.mark.anyio


def tuned(recorder: Recorder) -> list[tuple[str, str, int]]:
    return [(event.outcome, event.knob, event.after) for event in recorder.of(Tuned)]


def settings(directory: Path, **tuner: Any) -> OptimizationSettings:
    return OptimizationSettings(
        batcher=BatcherSettings(max_batch_size=4, max_slots=8),
        tuner=TunerSettings(enabled=True, state_directory=str(directory), **tuner),
    )


MakeStack = Callable[[OptimizationSettings], tuple[InferenceStack, Recorder]]


@pytest.fixture
async def make() -> AsyncIterator[MakeStack]:
    """Makes stacks that are closed after the test."""
    stacks = []

    def make(optimization: OptimizationSettings) -> tuple[InferenceStack, Recorder]:
        engine, recorder = CountingEngine(8), Recorder()
        stack = stack_on(engine, optimization, observers=[recorder])
        stacks.append(stack)
        return stack, recorder

    yield make
    for stack in stacks:
        await stack.close()


async def serve_one(stack: InferenceStack) -> None:
    async with asyncio.timeout(DEADLINE_S):
        async for _ in stack.submit(GenerationRequest("a", [1, 2, 3], 3)):
            pass


async def test_it_begins_with_the_first_request(make: MakeStack, tmp_path: Path) -> None:
    stack, recorder = make(settings(tmp_path))

    await serve_one(stack)

    await until(lambda: len(tuned(recorder)) == 3)
    assert ("began", "max_batch_size", 4) in tuned(recorder)


@pytest.mark.parametrize("off", ["optimization", "tuner"])
async def test_where_it_is_switched_off_there_is_none(make: MakeStack, tmp_path: Path, off: str) -> None:
    optimization = settings(tmp_path)
    if off == "optimization":
        optimization = optimization.model_copy(update={"enabled": False})
    else:
        optimization = optimization.model_copy(update={"tuner": TunerSettings(enabled=False)})
    stack, recorder = make(optimization)

    await serve_one(stack)
    await serve_one(stack)

    assert tuned(recorder) == []
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("tuner")] == []


async def test_what_was_good_before_the_restart_is_in_force_and_what_is_configured_is_remembered(
    make: MakeStack, tmp_path: Path
) -> None:
    TunerMemory("counting", "counting", settings(tmp_path)).save(Values(6, 50, 4096))
    stack, recorder = make(settings(tmp_path))

    await serve_one(stack)
    await until(lambda: len(tuned(recorder)) == 3)
    restored = stack.optimization.batcher.max_batch_size
    await stack.reconfigure({"tuner": {"enabled": False}})

    assert restored == 6
    assert stack.optimization.batcher.max_batch_size == 6  # it is left as it is: it was good


async def test_a_change_from_outside_is_where_it_begins_anew(make: MakeStack, tmp_path: Path) -> None:
    stack, recorder = make(settings(tmp_path))
    await serve_one(stack)
    await until(lambda: len(tuned(recorder)) == 3)

    await stack.reconfigure({"batcher": {"max_batch_size": 8}})

    await until(lambda: len(tuned(recorder)) == 6)
    assert tuned(recorder)[3] == ("began", "max_batch_size", 8)


async def test_it_can_be_switched_on_and_off_while_serving(make: MakeStack, tmp_path: Path) -> None:
    stack, recorder = make(settings(tmp_path).model_copy(update={"tuner": TunerSettings()}))
    await serve_one(stack)

    await stack.reconfigure({"tuner": {"enabled": True, "state_directory": str(tmp_path)}})
    await until(lambda: len(tuned(recorder)) == 3)
    await stack.reconfigure({"tuner": {"enabled": False}})
    await asyncio.sleep(0)

    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("tuner")] == []


async def test_closing_the_stack_ends_it(make: MakeStack, tmp_path: Path) -> None:
    stack, recorder = make(settings(tmp_path))
    await serve_one(stack)
    await until(lambda: len(tuned(recorder)) == 3)

    await stack.close()
    await asyncio.sleep(0)

    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("tuner")] == []
