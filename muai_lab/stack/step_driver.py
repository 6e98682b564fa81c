"""The driver of step engines: a thread that runs the scheduler's steps one after the other.

The thread owns scheduler and engine: commands reach them through its inbox, so there are no locks, and the event loop
keeps answering while a step computes. The tokens of a step are handed over in one call while the next step runs.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from muai_lab.engines.base import StepEngine
from muai_lab.stack.change import Change, PendingChange
from muai_lab.stack.driver import CLOSED, Deliver, EngineDriver
from muai_lab.stack.events import Event, Observer
from muai_lab.stack.execution import Execution, StepRaised
from muai_lab.stack.observers import ObserverList
from muai_lab.stack.plan import Plan
from muai_lab.stack.recovery import recover
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.scheduler import Scheduler
from muai_lab.stack.step import run_step

log = logging.getLogger(__name__)

Command = Callable[[float], None]

_CLOSE_S = 30.0  # for a step that runs while the driver is closed; a hung one never ends
_LONGEST_SLEEP_S = 3600.0  # a thread cannot wait for longer than some platform's limit; waking up early costs nothing


class StepDriver(EngineDriver):
    """The thread of one step engine; see `EngineDriver`.

    A step that raises ends the engine only if it cannot compute anything any more (see `recover`). Otherwise the
    scheduler finds the request that causes it.
    """

    def __init__(
        self,
        engine: StepEngine,
        scheduler: Scheduler,
        deliver: Deliver,
        *,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._deliver = deliver
        self._observers = ObserverList(observers)
        self._clock = clock
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._closing = False
        self._abandoned = False
        self._execution = Execution(engine, clock)
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{engine.info.name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """See `EngineDriver.alive`."""
        return self._thread.is_alive() and self.failure is None

    def add(self, request: GenerationRequest, *, suspect: bool = False) -> None:
        """See `EngineDriver.add`."""
        self._inbox.put(lambda now: self._add(request, now, suspect=suspect))

    def finish(self, request_id: str) -> None:
        """See `EngineDriver.finish`."""
        self._inbox.put(lambda now: self._scheduler.finish(request_id, now))

    def fail(self, request_id: str, *, status: str, message: str) -> None:
        """See `EngineDriver.fail`."""
        self._inbox.put(lambda now: self._scheduler.fail(request_id, now, status=status, message=message))

    def show(self, events: Sequence[Event]) -> None:
        """See `EngineDriver.show`."""
        if self._abandoned:
            self._observers.show(events)  # the thread shows nothing any more
        else:
            self._inbox.put(lambda _now: self._observers.show(events))

    def apply(self, change: Change) -> Future[None]:
        """See `EngineDriver.apply`."""
        pending = PendingChange(change)
        self._inbox.put(lambda now: pending.make(self._scheduler, now))
        return pending.done

    def stalled_s(self) -> float:
        """See `EngineDriver.stalled_s`."""
        began = self._execution.began
        return 0.0 if began is None else max(0.0, self._clock() - began)

    def computing(self) -> frozenset[str]:
        """See `EngineDriver.computing`."""
        return frozenset(self._scheduler.names_in(self._execution.slots))

    def abandon(self, reason: str) -> None:
        """See `EngineDriver.abandon`. Nothing is delivered any more.

        The thread, which cannot be ended, is left behind. If the step returns after all, the thread closes the engine.
        """
        self._abandoned = True
        self.failure = reason
        log.error("engine %s is abandoned: %s", self._engine.info.name, reason)
        self._inbox.put(self._begin_close)

    def close(self) -> None:
        """See `EngineDriver.close`. An engine that hangs is left behind with its thread after `_CLOSE_S` seconds."""
        if self._abandoned:
            return
        self._inbox.put(self._begin_close)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            log.error("engine %s hangs in a step; it is left behind", self._engine.info.name)

    def _begin_close(self, now: float) -> None:
        self._closing = True
        self._scheduler.fail_all(now, status="cancelled", message=CLOSED)

    def _add(self, request: GenerationRequest, now: float, *, suspect: bool) -> None:
        self._scheduler.add(request, now, suspect=suspect)
        if self._closing:
            self._scheduler.fail(request.request_id, now, status="cancelled", message=CLOSED)
        elif self.failure is not None:
            self._scheduler.lose(request.request_id, now, message=self.failure)

    def _run(self) -> None:
        plan = Plan()
        while not self._closing:
            try:
                plan = self._turn(plan)
            except Exception as error:  # noqa: BLE001 - whatever failed, its requests must end, not hang
                self._fail(error)
                plan = Plan()
        self._flush()
        try:
            self._engine.close()
        except Exception:  # the thread ends here: no caller could get the error
            log.exception("engine %s failed while it was closed", self._engine.info.name)

    def _turn(self, previous: Plan) -> Plan:
        """Take commands (sleep for them if there was nothing to compute), then make one step."""
        self._take_commands(block=previous.empty, until=previous.wait_until)
        if self._closing or self.failure is not None:
            self._flush()
            return Plan()
        execution = self._execution
        try:
            plan = run_step(self._scheduler, self._clock(), execution.carry_out, self._flush)
            if execution.faults:
                self._fail_slots(execution.faults)
        except StepRaised as raised:
            plan = raised.plan
            self._recover(raised)
            self._flush()
        finally:
            execution.end()
        return plan

    def _take_commands(self, *, block: bool, until: float | None) -> None:
        # While there is work the inbox is only emptied; without work the thread sleeps in it. No polling.
        try:
            if block:
                timeout = None if until is None else min(max(0.0, until - self._clock()), _LONGEST_SLEEP_S)
                self._inbox.get(timeout=timeout)(self._clock())
            while True:
                self._inbox.get_nowait()(self._clock())
        except queue.Empty:
            pass

    def _fail_slots(self, faults: Mapping[int, Exception]) -> None:
        """End the requests in single slots that a step failed for."""
        name = self._engine.info.name
        for slot, error in faults.items():
            request_id = self._scheduler.request_in(slot).request_id
            log.error("engine %s failed for request %s", name, request_id, exc_info=error)
            message = f"engine {name} failed for this request: {_in_words(error)}"
            self._scheduler.fail(request_id, self._clock(), status="error", message=message)
        self._flush()

    def _recover(self, raised: StepRaised) -> None:
        """Continue after a step or a copy that raised, without the request that causes it, or end the engine."""
        name, error, computed = self._engine.info.name, raised.error, raised.computed
        tested = self._scheduler.on_trial  # then the step was expected to fail, and the log has the first failure
        log.error("engine %s failed in a step of %d sequences", name, len(computed), exc_info=None if tested else error)
        message = f"engine {name} failed in a step: {_in_words(error)}"
        try:
            if raised.in_release:
                raise error
            recover(self._engine)
        except Exception as fatal:  # noqa: BLE001 - whatever it is, the engine can make no step any more
            if fatal is not error:
                log.error("engine %s cannot go on: %s", name, _in_words(fatal))
            self._die(message, computed)
            return
        self._scheduler.step_failed(computed, began=raised.began, now=self._clock(), message=message)

    def _fail(self, error: Exception) -> None:
        """The scheduler itself has failed: end the engine."""
        name = self._engine.info.name
        log.error("engine %s failed in a step", name, exc_info=error)
        self._die(f"engine {name} failed in a step: {_in_words(error)}", None)

    def _die(self, message: str, computed: Sequence[int] | None) -> None:
        """End the engine: every request is lost, and so is every later one.

        computed: slots of the fatal step, None if there was none.
        """
        self.failure = message
        self._scheduler.lose_all(self._clock(), message=message, computed=computed)
        self._flush()
        self._deliver([])  # reports the failure even if no request was in flight

    def _flush(self) -> None:
        events = self._scheduler.take_events()
        if not events or self._abandoned:
            return
        # Observers first: a client that has seen its request end finds it counted.
        self._observers.show(events)
        self._deliver(events)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
