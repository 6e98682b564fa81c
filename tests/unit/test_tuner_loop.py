"""The tuner at work: what it decides is applied, told, kept; and what happens when that fails."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from muai_lab.errors import EngineError
from muai_lab.settings.live import changed
from muai_lab.settings.schema import BatcherSettings, CacheSettings, OptimizationSettings, TunerSettings
from muai_lab.stack.events import Event, Finished, Queued, Token, Tuned
from muai_lab.stack.online.knobs import Values
from muai_lab.stack.online.loop import Tap, TuningLoop
from muai_lab.stack.online.memory import TunerMemory

pytestmark = pytest.mark.anyio


def configured(directory: Path, **tuner: Any) -> OptimizationSettings:
    return OptimizationSettings(
        batcher=BatcherSettings(max_batch_size=4, max_slots=16, adaptive_batching=False),
        cache=CacheSettings(enabled=False),
        tuner=TunerSettings(
            enabled=True,
            tuning_interval_seconds=10,
            observation_window_seconds=50,
            tpot_target_ms=100.0,
            state_directory=str(directory),
            **tuner,
        ),
    )


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until this has come about."""
    give_up_at = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0)


class Rig:
    """A stack that serves 5 requests a second, all of them well while at most so many run at once."""

    def __init__(self, settings: OptimizationSettings, *, most: int = 8, refuse: int = 0) -> None:
        self.configured = self.in_force = settings
        self.most = most
        self.refuse = refuse  # how many changes fail
        self.now = 0.0
        self.told: list[Event] = []
        self.tap = Tap()
        self.count = 0

    async def sleep(self, seconds: float) -> None:
        begin, self.now = self.now, self.now + seconds
        good = self.in_force.batcher.max_batch_size <= self.most
        for at in range(round(5 * seconds)):
            self.count += 1
            name, end = str(self.count), begin + at / 5
            took = 0.5 if good else 5.0
            self.tap.observe([Queued(name, end - took, 9), Token(name, end - took, 1, 0)])
            self.tap.observe([Finished(name, end, "length", 9, 11, end - took, end - took, end - took)])
        await asyncio.sleep(0)

    async def apply(self, changes: dict[str, Any]) -> None:
        if self.refuse:
            self.refuse -= 1
            raise EngineError("pytorch", "a step may hang")
        self.in_force = changed(self.in_force, changes)

    def show(self, events: Sequence[Event]) -> None:
        self.told.extend(events)

    def loop(self, **more: Any) -> TuningLoop:
        return TuningLoop(
            "chat",
            "pytorch",
            self.configured,
            self.in_force,
            slots=16,
            caches=False,
            tap=self.tap,
            apply=self.apply,
            show=self.show,
            clock=lambda: self.now,
            sleep=self.sleep,
            **more,
        )

    async def run(self, until_s: float, **more: Any) -> TuningLoop:
        loop = self.loop(**more)
        task = asyncio.create_task(loop.run())
        await until(lambda: self.now >= until_s or task.done())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return loop

    def outcomes(self, knob: str = "max_batch_size") -> list[tuple[str, int, int]]:
        return [
            (event.outcome, event.before, event.after)
            for event in self.told
            if isinstance(event, Tuned) and event.knob == knob
        ]


async def test_it_applies_tells_logs_and_keeps_what_it_decides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rig = Rig(configured(tmp_path), most=2)

    await rig.run(30.0)

    assert rig.outcomes() == [("began", 4, 4), ("tried", 4, 1), ("kept", 4, 1)]
    assert rig.in_force.batcher.max_batch_size == 1
    assert TunerMemory("chat", "pytorch", rig.configured).load() == Values(1, 50, 0)
    assert "tuner of chat on pytorch: moves max_batch_size from 1 to 16" in caplog.text
    assert "kept: share of good requests 0 -> 1" in caplog.text


async def test_it_begins_with_what_was_good_before_the_restart(tmp_path: Path) -> None:
    settings = configured(tmp_path)
    TunerMemory("chat", "pytorch", settings).save(Values(12, 50, 0))
    rig = Rig(settings)

    await rig.run(5.0)

    assert rig.outcomes() == [("restored", 4, 12)]
    assert rig.in_force.batcher.max_batch_size == 12


async def test_what_was_kept_is_brought_within_the_engine_s_slots(tmp_path: Path) -> None:
    settings = configured(tmp_path)
    TunerMemory("chat", "pytorch", settings).save(Values(64, 900, 0))
    rig = Rig(settings)

    await rig.run(5.0)

    assert rig.in_force.batcher.max_batch_size == 16
    assert rig.in_force.batcher.batch_timeout_ms == 50


async def test_a_change_that_fails_is_told_and_it_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(configured(tmp_path), most=0, refuse=1)

    await rig.run(60.0)

    assert "the change could not be made, it begins anew" in caplog.text
    assert [outcome for outcome, *_ in rig.outcomes()].count("began") == 2
    assert "tried" in [outcome for outcome, *_ in rig.outcomes()]


async def test_what_is_on_trial_can_be_taken_back(tmp_path: Path) -> None:
    rig = Rig(configured(tmp_path), most=0)

    loop = await rig.run(14.0)

    assert rig.outcomes()[-1] == ("tried", 4, 1)
    assert loop.undo() == {"batcher": {"max_batch_size": 4}}
    assert loop.good == Values(4, 50, 0)


async def test_when_it_ends_it_listens_no_more(tmp_path: Path) -> None:
    rig = Rig(configured(tmp_path))

    await rig.run(5.0)

    assert rig.tap.listener is None


async def test_one_that_begins_before_the_last_has_ended_keeps_its_events(tmp_path: Path) -> None:
    rig = Rig(configured(tmp_path))
    first = asyncio.create_task(rig.loop().run())
    await until(lambda: rig.tap.listener is not None)
    earlier = rig.tap.listener
    second = asyncio.create_task(rig.loop().run())
    await until(lambda: rig.tap.listener is not earlier)

    first.cancel()
    await asyncio.gather(first, return_exceptions=True)

    assert rig.tap.listener is not None
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)


async def test_a_fault_of_its_own_ends_it_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(configured(tmp_path), most=0)

    async def broken(_changes: dict[str, Any]) -> None:
        raise ZeroDivisionError

    rig.apply = broken  # type: ignore[method-assign]

    await rig.run(60.0)

    assert "what is in force stays" in caplog.text
