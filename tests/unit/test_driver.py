"""The engine's thread: commands in, events out, and no failure that ends in silence."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import pytest

from muai_lab.stack.events import Event, Failed, Finished, Lost, Queued, Rejected, Token
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.scheduler import Scheduler
from muai_lab.stack.step_driver import StepDriver
from tests.unit.counting_engine import DEADLINE_S, CountingEngine

FOREVER = 10_000


class Running:
    """A driver over an engine, and the events that it has delivered."""

    def __init__(self, engine: CountingEngine, observers: Sequence[object] = (), **limits: float) -> None:
        self.engine = engine
        self.batches: queue.SimpleQueue[Sequence[Event]] = queue.SimpleQueue()
        self.seen: list[Event] = []
        batching = BatchLimits(engine.slots, **limits)  # type: ignore[arg-type]
        scheduler = Scheduler(batching, slots=engine.slots, eos_token_ids=engine.eos_token_ids)
        self.driver = StepDriver(engine, scheduler, self.batches.put, observers=observers)  # type: ignore[arg-type]

    def until(self, kind: type, request_id: str | None = None) -> Event:
        """The first event of this kind (and request), waited for if it has not come yet."""
        at = 0
        while True:
            for event in self.seen[at:]:
                if isinstance(event, kind) and request_id in (None, getattr(event, "request_id", None)):
                    return event
            at = len(self.seen)
            self.seen.extend(self.batches.get(timeout=DEADLINE_S))

    def tokens(self, request_id: str) -> list[int]:
        return [event.token for event in self.seen if isinstance(event, Token) and event.request_id == request_id]


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def stepwise() -> CountingEngine:
    return CountingEngine(slots=2, stepwise=True)


@pytest.fixture
def running(engine: CountingEngine) -> Iterator[Running]:
    running = Running(engine)
    yield running
    running.driver.close()


def ask(name: str, max_tokens: int = 3, **more: object) -> GenerationRequest:
    return GenerationRequest(name, [1, 2, 10], max_tokens, **more)  # type: ignore[arg-type]


def test_a_request_runs_to_its_end(running: Running) -> None:
    running.driver.add(ask("a"))
    finished = running.until(Finished)

    assert running.tokens("a") == [11, 12, 13]
    assert (finished.reason, finished.output_tokens) == ("length", 3)  # type: ignore[attr-defined]


def test_the_engine_is_used_from_one_thread_that_is_not_the_callers(running: Running) -> None:
    running.driver.add(ask("a"))
    running.until(Finished)
    running.driver.close()

    assert len(running.engine.threads) == 1
    assert threading.get_ident() not in running.engine.threads


def test_slots_are_used_again_and_again(running: Running) -> None:
    for number in range(10):  # on four slots, which the engine refuses to fill twice
        running.driver.add(ask(str(number)))

    for number in range(10):
        running.until(Finished, str(number))
        assert running.tokens(str(number)) == [11, 12, 13]


def test_requests_that_arrive_while_a_step_runs_join_at_the_next(stepwise: CountingEngine) -> None:
    running = Running(stepwise)
    running.driver.add(ask("a"))
    stepwise.wait_until_entered()

    running.driver.add(ask("b"))
    for _ in range(8):
        stepwise.allow.release()
    running.until(Finished, "b")
    running.driver.close()

    assert stepwise.calls[:3] == [("prefill", (0,)), ("decode", (0,)), ("prefill", (1,))]
    assert stepwise.calls[3] == ("decode", (0, 1))
    assert running.tokens("a") == running.tokens("b") == [11, 12, 13]


def test_a_cancelled_request_is_out_of_the_next_step() -> None:
    engine = CountingEngine(stepwise=True)
    running = Running(engine)
    running.driver.add(ask("first", max_tokens=1))
    engine.wait_until_entered()  # while it computes, two others arrive
    for name in "ab":
        running.driver.add(ask(name, max_tokens=FOREVER))
    engine.allow.release(2)
    running.until(Token, "b")
    for _ in range(2):
        engine.wait_until_entered()

    running.driver.fail("a", status="cancelled", message="gone")
    engine.allow.release()
    failed = running.until(Failed, "a")
    engine.wait_until_entered()

    assert (failed.status, failed.message) == ("cancelled", "gone")  # type: ignore[attr-defined]
    assert engine.calls == [("prefill", (0,)), ("prefill", (0, 1)), ("decode", (0, 1)), ("decode", (1,))]
    assert engine.occupied == {1}
    engine.allow.release(FOREVER)
    running.driver.close()


def test_a_held_request_starts_when_its_hold_is_over(engine: CountingEngine) -> None:
    running = Running(engine, min_batch_size=4, timeout_s=0.01)
    running.driver.add(ask("a"))

    running.until(Finished, "a")
    running.driver.close()


def test_a_deadline_ends_a_request_that_nothing_else_would_wake(engine: CountingEngine) -> None:
    running = Running(engine, min_batch_size=4, timeout_s=1e9)
    running.driver.add(ask("a", timeout_s=0.01))

    failed = running.until(Failed, "a")
    running.driver.close()

    assert failed.status == "timeout"  # type: ignore[attr-defined]


def test_a_hold_longer_than_a_thread_can_wait_is_no_failure(engine: CountingEngine) -> None:
    running = Running(engine, min_batch_size=4, timeout_s=1e12)
    running.driver.add(ask("a"))
    running.until(Queued, "a")
    running.driver.fail("a", status="cancelled", message="gone")

    assert running.until(Failed, "a").status == "cancelled"  # type: ignore[attr-defined]
    assert running.driver.alive
    running.driver.close()


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c", "d", "e", "f"]])
def test_under_an_engine_that_fails_in_a_step_every_request_is_lost_with_the_reason(
    names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    engine = CountingEngine(stepwise=True)
    running = Running(engine)
    for name in names:
        running.driver.add(ask(name, max_tokens=9))
    engine.wait_until_entered()
    engine.fail_next = RuntimeError("out of memory")
    engine.allow.release(2)  # and one for the driver's own attempt to compute something

    for name in names:
        running.until(Lost, name)

    reason = "engine counting failed in a step: RuntimeError: out of memory"
    assert [event.message for event in running.seen if isinstance(event, Lost)] == [reason] * len(names)
    assert running.driver.failure == reason
    assert not running.driver.alive
    assert "out of memory" in caplog.text
    running.driver.close()
    assert engine.closed == 1


def test_requests_after_a_failure_are_lost_at_once(engine: CountingEngine) -> None:
    running = Running(engine)
    engine.fail_next = RuntimeError("out of memory")
    running.driver.add(ask("a"))
    running.until(Lost, "a")

    running.driver.add(ask("b"))

    assert "out of memory" in running.until(Lost, "b").message  # type: ignore[attr-defined]
    running.driver.close()


def test_an_engine_that_returns_too_few_tokens_has_failed(engine: CountingEngine) -> None:
    running = Running(engine)
    engine.decode = lambda slots: []  # type: ignore[method-assign]
    running.driver.add(ask("a"))

    running.until(Lost, "a")
    running.driver.close()


def test_an_engine_that_cannot_release_has_failed(engine: CountingEngine) -> None:
    running = Running(engine)
    engine.fail_release = RuntimeError("lost")
    running.driver.add(ask("a"))
    running.until(Finished, "a")
    running.driver.add(ask("b"))

    assert "lost" in running.until(Lost, "b").message  # type: ignore[attr-defined]
    running.driver.close()


def test_closing_waits_for_the_step_and_cancels_the_rest(stepwise: CountingEngine) -> None:
    running = Running(stepwise)
    for name in "abc":
        running.driver.add(ask(name, max_tokens=FOREVER))
    stepwise.wait_until_entered()
    closing = threading.Thread(target=running.driver.close)
    closing.start()

    stepwise.allow.release(FOREVER)
    closing.join(DEADLINE_S)

    assert [running.until(Failed, name).status for name in "abc"] == ["cancelled"] * 3  # type: ignore[attr-defined]
    assert stepwise.closed == 1
    assert not running.driver.alive


def test_closing_twice_is_harmless(running: Running) -> None:
    running.driver.close()
    running.driver.close()

    assert running.engine.closed == 1


def test_an_engine_that_fails_to_close_is_logged(engine: CountingEngine, caplog: pytest.LogCaptureFixture) -> None:
    running = Running(engine)

    def fail() -> None:
        raise RuntimeError("stuck")

    engine.close = fail  # type: ignore[method-assign]
    running.driver.close()

    assert "stuck" in caplog.text


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, events: Sequence[Event]) -> None:
        self.events.extend(events)


class Faulty:
    def __init__(self) -> None:
        self.calls = 0

    def observe(self, events: Sequence[Event]) -> None:
        self.calls += 1
        raise ZeroDivisionError("observer")


def test_observers_see_every_event_in_order(engine: CountingEngine) -> None:
    recorder = Recorder()
    running = Running(engine, [recorder])
    running.driver.add(ask("a"))
    running.until(Finished)
    running.driver.close()

    assert recorder.events == running.seen


def test_an_observer_that_raises_is_left_out_and_the_requests_go_on(
    engine: CountingEngine, caplog: pytest.LogCaptureFixture
) -> None:
    faulty, recorder = Faulty(), Recorder()
    running = Running(engine, [faulty, recorder])
    running.driver.add(ask("a"))
    running.until(Finished)
    running.driver.close()

    assert faulty.calls == 1
    assert recorder.events == running.seen
    assert "it gets no more events" in caplog.text


def test_what_happens_outside_the_scheduler_reaches_observers_on_the_same_thread(engine: CountingEngine) -> None:
    threads = []

    class Observer(Recorder):
        def observe(self, events: Sequence[Event]) -> None:
            threads.append(threading.get_ident())
            super().observe(events)

    observer = Observer()
    running = Running(engine, [observer])
    running.driver.show([Rejected(1.0, "full")])
    running.driver.close()

    assert observer.events == [Rejected(1.0, "full")]
    assert set(threads) == engine.threads
