"""The window of `load.duration_s=auto`: it ends as soon as the headline is known precisely enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from muai_lab.analysis.statistics import Estimate
from muai_lab.analysis.stopping import FIRST_LOOK_S, GROWTH, Look, Seen, enough, look_at
from muai_lab.arrays import Floats
from muai_lab.errors import SettingsError
from muai_lab.experiment.automatic_end import AutomaticEnd
from muai_lab.load.clock_offset import ClockOffset
from muai_lab.load.crew import coordinate
from muai_lab.load.ending import ObservedBatch, Relay, Sightings
from muai_lab.load.generator import LoadResult, generate
from muai_lab.load.plan import LoadPlan
from muai_lab.load.self_report import GeneratorReport
from muai_lab.request_record import RequestRecord
from muai_lab.settings.lab import LabSettings, LoadSettings
from muai_lab.settings.resolve import load_settings
from muai_lab.window import Window
from muai_lab.workload.arrival import poisson
from muai_lab.workload.schedule import Schedule, ScheduledRequest
from tests.unit.test_load_generator import TimedTarget, closed_schedule, open_schedule
from tests.unit.virtual_time import VirtualTimeLoop, run_virtual


class AtOnce(Executor):
    """Runs each look when it is asked for."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except ArithmeticError as error:
            future.set_exception(error)
        return future


START_NS = 5_000_000_000
PLAN = LoadPlan(warmup_s=1.0, duration_s=100.0, drain_s=5.0, request_timeout_s=60.0, concurrency=4, watched=True)


class At:
    """Ends the window at a given time of it; counts what it sees."""

    def __init__(self, after_s: float) -> None:
        self.after_ns = round(after_s * 1e9)
        self.ended = 0
        self.end_ns: int | None = None

    def begin(self, measure_ns: int) -> None:
        self.planned_ns = measure_ns + self.after_ns

    def see(self, batch: ObservedBatch) -> None:
        self.ended += batch.over_ns.size
        if self.ended:
            self.end_ns = self.planned_ns


def offered(schedule: Schedule, target_type: type[TimedTarget] = TimedTarget, after_s: float = 3.0) -> LoadResult:
    async def main(loop: VirtualTimeLoop) -> LoadResult:
        ending = At(after_s)
        target = target_type(loop, lambda index: 0.1 + 0.01 * (index % 7))
        return await generate(schedule, target, PLAN, clock=loop.now_ns, ending=ending)

    return run_virtual(main)


class TestGenerator:
    @pytest.mark.parametrize("schedule", [open_schedule(10.0, 101.0), closed_schedule(10_000)], ids=["open", "closed"])
    def test_the_window_ends_when_it_is_told_to(self, schedule: Schedule) -> None:
        result = offered(schedule)

        assert result.window.duration_s == 3.0
        assert {record.status for record in result.records} == {"ok"}
        assert max(record.due_ns for record in result.records) < result.window.measure_end_ns
        assert result.window.drain_end_ns - result.window.measure_end_ns < 0.5e9
        assert (result.interrupted, result.notes) == (False, ())

    def test_later_turns_that_are_due_after_the_end_are_not_sent(self) -> None:
        class Speaking(TimedTarget):
            async def send(self, request: ScheduledRequest, record: RequestRecord) -> None:
                if record.answer is not None:
                    record.answer.append("yes")
                await super().send(request, record)

        rows = [
            ScheduledRequest(2 * i + turn, None if turn else i / 20.0, "hello", None, 1, 4, session=i, turn=turn,
                             think_s=20.0 * turn)
            for i in range(2000) for turn in (0, 1)
        ]  # fmt: skip
        result = offered(Schedule.of(rows), Speaking)

        assert result.window.duration_s == 3.0
        assert result.window.drain_end_ns - result.window.measure_end_ns < 0.5e9
        assert result.notes == ("turns not sent because they were due after the end of the load: 80",)


class LedWorker:
    """A generator elsewhere, whose clock is ahead; its load ends when it is told the end."""

    progress = None

    def __init__(self, name: str, ahead_ns: int) -> None:
        self.name = name
        self.offset = ClockOffset(offset_ns=ahead_ns)
        self.told: list[int] = []
        self.over = asyncio.Event()

    async def ready(self) -> None:
        pass

    async def clock(self) -> ClockOffset:
        return self.offset

    def start(self, start_ns: int) -> None:
        self.start_ns = start_ns

    def seen(self) -> list[ObservedBatch]:
        times = np.array([self.start_ns + 1_000], dtype=np.int64)
        return [ObservedBatch(times, times, times, *np.zeros((4, 1)))]

    def end_at(self, end_ns: int) -> None:
        self.told.append(end_ns - self.start_ns)
        self.over.set()

    def stop(self) -> None:
        self.over.set()

    async def result(self) -> LoadResult:
        await self.over.wait()
        return ENDED

    async def close(self) -> None:
        pass


ENDED = LoadResult((), Window(0, 0, 1, 1), GeneratorReport(None, None, None, None, "ok", None), False, ())


def test_generators_that_are_led_end_at_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muai_lab.load.crew._REPORT_INTERVAL_S", 0.0)
    seen: list[int] = []

    class Together(At):
        def see(self, batch: ObservedBatch) -> None:
            seen.extend((batch.sent_ns - self.planned_ns).tolist())
            super().see(batch)

    async def main() -> list[LedWorker]:
        workers = [LedWorker("one", 0), LedWorker("two", 7_000)]
        await coordinate(workers, warmup_s=1.0, ending=Together(3.0))
        return workers

    workers = asyncio.run(main())

    # Both on the clock of the leader, 3 s into the window that began 1 s after the start
    assert set(seen) == {1_000 - 4_000_000_000}
    assert [worker.told for worker in workers] == [[4_000_000_000], [4_000_000_000]]


def fed(load: LoadSettings, figures: Callable[[Floats], Floats], *, until_s: float = 500.0) -> AutomaticEnd:
    """The decision over a load of 20 requests/s whose latencies are a function of the due time."""

    async def main() -> AutomaticEnd:
        now_ns = START_NS
        ending = AutomaticEnd(load, open_loop=True, clock=lambda: now_ns, executor=AtOnce())
        ending.begin(START_NS)
        due_s = poisson(20.0, until_s, np.random.default_rng(1))
        latency_s = figures(due_s)
        due_ns = START_NS + (due_s * 1e9).astype(np.int64)
        over_ns = due_ns + (latency_s * 1e9).astype(np.int64)
        missing = np.full(due_s.size, np.nan)
        for step in range(1, int(until_s) + 1):
            before_ns, now_ns = now_ns, START_NS + step * 1_000_000_000
            sent, ended = ((before_ns <= each) & (each < now_ns) for each in (due_ns, over_ns))
            kept = (latency_s[ended], missing[ended], latency_s[ended], missing[ended])
            ending.see(ObservedBatch(due_ns[sent], due_ns[ended], over_ns[ended], *kept))
            await asyncio.sleep(0)
            if ending.end_ns is not None:
                break
        return ending

    return asyncio.run(main())


def scattered(spread: float) -> Callable[[Floats], Floats]:
    return lambda due_s: 0.1 * np.exp(spread * np.random.default_rng(2).standard_normal(due_s.size))


class TestDecision:
    def test_it_ends_when_two_looks_agree_that_it_is_precise_enough(self) -> None:
        ending = fed(LoadSettings(duration_s="auto"), scattered(0.2))

        start, *_, first, second = ending.facts()["looks"]
        assert start["length_s"] == FIRST_LOOK_S
        assert second["length_s"] <= 50.0
        assert max(first["half_width"], second["half_width"]) <= 0.05
        assert ending.end_ns is not None
        assert 0.0 < (ending.end_ns - START_NS) / 1e9 - second["length_s"] < 3.0

    def test_one_narrow_interval_is_not_enough(self) -> None:
        wide, narrow = (Look(length_s, "median TTFT", Estimate(1.0, 1.0 - half, 1.0 + half)) for length_s, half in
                        ((20.0, 0.2), (30.0, 0.04)))  # fmt: skip

        assert not enough([narrow], 0.05)
        assert not enough([wide, narrow], 0.05)
        assert enough([wide, narrow, replace(narrow, length_s=45.0)], 0.05)
        assert not enough([Look(20.0, "median TTFT", Estimate(1.0)), narrow], 0.05)

    def test_it_goes_on_in_growing_steps_until_then(self) -> None:
        looks = fed(LoadSettings(duration_s="auto"), scattered(1.0)).facts()["looks"]

        assert len(looks) >= 3
        assert all(later["length_s"] >= GROWTH * before["length_s"] for before, later in pairwise(looks))
        assert looks[-1]["half_width"] <= 0.05

    def test_figures_that_wander_are_not_taken_for_precise(self) -> None:
        load = LoadSettings(duration_s="auto", precision=0.5)
        ending = fed(load, lambda due_s: 0.1 + 0.05 * np.sin(due_s / 30.0))

        assert ending.end_ns is None
        assert not ending.facts()["precise"]
        assert all(look["needs_s"] > look["length_s"] for look in ending.facts()["looks"])

    def test_what_goes_wrong_at_a_look_is_raised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(*args: object, **kwargs: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("muai_lab.experiment.automatic_end.look_at", failing)
        with pytest.raises(ZeroDivisionError):
            fed(LoadSettings(duration_s="auto"), scattered(0.2))


def test_batches_hold_each_request_once_when_it_is_sent_and_once_when_it_ends() -> None:
    records = [RequestRecord(0, max_tokens=4, intended_ns=5), RequestRecord(1, max_tokens=4, intended_ns=6)]
    sightings = Sightings()
    first = sightings.batch(records)
    records[1].sent_ns = 7
    records[1].chunk_t_ns.extend([1_000_000_006, 3_000_000_006])
    records[1].chunk_tokens.extend([1, 4])
    records[1].output_tokens = 5
    records[1].end("ok", 3_000_000_100)
    second = sightings.batch(records)
    records[0].end("timeout", 9)
    third = sightings.batch(records)

    assert [batch.sent_ns.tolist() for batch in (first, second, third)] == [[5, 6], [], []]
    assert [batch.over_ns.tolist() for batch in (first, second, third)] == [[], [3_000_000_006], [9]]
    assert (second.ttft_s.tolist(), second.e2e_s.tolist(), second.tokens.tolist()) == ([1.0], [3.0], [5.0])
    assert second.tpot_s.tolist() == [0.5]
    assert np.isnan(third.ttft_s).all()


def test_times_of_another_machine_are_put_on_our_clock() -> None:
    relayed = []
    relay = Relay(relayed.append)
    relay.see(Sightings().batch([RequestRecord(0, max_tokens=4, intended_ns=1_000)]))
    relay.end_at(77)

    assert relayed[0].on(ClockOffset(offset_ns=400)).sent_ns.tolist() == [600]
    assert relay.end_ns == 77


def test_the_headline_of_an_open_loop_without_first_tokens_is_the_whole_request() -> None:
    t_s, missing = np.linspace(0.0, 99.9, 1000), np.full(1000, np.nan)
    seen = Seen(t_s, t_s, t_s + 0.1, missing, missing, np.random.default_rng(1).uniform(0.1, 0.2, 1000), missing)

    assert look_at(seen, 0.0, 100.0, open_loop=True).figure == "median E2E latency"
    assert look_at(seen, 0.0, 100.0, open_loop=False).figure == "requests per second"
    assert look_at(seen, 0.0, 100.0, open_loop=False).estimate.value == pytest.approx(10.0, rel=0.01)


class TestSettings:
    def settings(self, **overrides: object) -> LabSettings:
        given = {key.replace("__", "."): value for key, value in overrides.items()}
        return load_settings(environ={}, overrides=given).settings

    def test_its_own_keys_choose_it(self) -> None:
        assert self.settings(load__precision=0.03).load.automatic
        assert self.settings(load__longest_s=100.0).load.window_s == 100.0
        assert self.settings().load.window_s == 30.0

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            ({"load.duration_s": 20, "load.precision": 0.1}, "precision needs duration_s=auto"),
            ({"load.duration_s": "auto", "load.requests": 100}, "leave out one of them"),
            ({"load.duration_s": "auto", "arrival.kind": "ramp"}, "needs a load that stays alike"),
            ({"load.duration_s": "car"}, "expected a number, above 0 (s), or auto"),
            ({"load.duration_s": 0}, "expected a number, above 0 (s), or auto"),
        ],
        ids=["number", "requests", "ramp", "word", "zero"],
    )
    def test_contradictions_are_refused(self, overrides: dict[str, object], message: str) -> None:
        with pytest.raises(SettingsError) as caught:
            load_settings(environ={}, overrides=overrides)

        assert message in str(caught.value)
