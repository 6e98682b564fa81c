"""Runs a scheduler against a real engine, in a thread of its own.

The thread owns scheduler and engine: everything else reaches them through its inbox, so there are no locks, and the event
loop goes on answering while a step computes. The tokens of a step are handed over in one call while the next step already
runs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from muai_lab.engines.base import StepEngine
from muai_lab.stack.events import Event, Observer
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.scheduler import Plan, Scheduler

Command = Callable[[float], None]


class StepDriver:
    """One engine thread. `deliver` gets every batch of events, in order, and must only pass them on."""

    def __init__(
        self,
        engine: StepEngine,
        scheduler: Scheduler,
        deliver: Callable[[Sequence[Event]], None],
        *,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._deliver = deliver
        self._observers = tuple(observers)
        self._clock = clock
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._closing = False
        self.failure: str | None = None  # why the engine can no longer run, once it cannot
        self._thread = threading.Thread(target=self._run, name=f"engine-{engine.info.name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True while the engine thread runs and its engine has not failed."""
        return self._thread.is_alive() and self.failure is None

    def add(self, request: GenerationRequest) -> None:
        """Queue a request; its events follow."""
        self._inbox.put(lambda now: self._add(request, now))

    def finish(self, request_id: str) -> None:
        """End a request with success: its text met a stop string."""
        self._inbox.put(lambda now: self._scheduler.finish(request_id, now))

    def cancel(self, request_id: str, message: str) -> None:
        """End a request without a result and free its slot before the next step."""
        self._inbox.put(lambda now: self._scheduler.fail(request_id, now, status="cancelled", message=message))

    def close(self) -> None:
        """End what still runs as cancelled, close the engine, end the thread. Blocks until the present step is over."""
        self._inbox.put(self._begin_close)
        self._thread.join()

    def _begin_close(self, now: float) -> None:
        self._closing = True
        self._scheduler.fail_all(now, status="cancelled", message="the stack was closed")

    def _add(self, request: GenerationRequest, now: float) -> None:
        self._scheduler.add(request, now)
        if self.failure is not None:
            self._scheduler.fail(request.request_id, now, status="error", message=self.failure)

    def _run(self) -> None:
        plan = Plan()
        while True:
            # While there is work the inbox is only emptied; without work the thread sleeps in it. No polling.
            self._take_commands(block=plan.empty, until=plan.wait_until)
            if self.failure is None:
                for slot in self._scheduler.take_released():
                    self._engine.release(slot)
            if self._closing:
                break
            plan = self._scheduler.plan(self._clock()) if self.failure is None else Plan()
            self._flush()
            if not plan.empty:
                self._step(plan)
                self._flush()
        self._flush()
        self._engine.close()

    def _take_commands(self, *, block: bool, until: float | None) -> None:
        try:
            if block:
                timeout = None if until is None else max(0.0, until - self._clock())
                self._inbox.get(timeout=timeout)(self._clock())
            while True:
                self._inbox.get_nowait()(self._clock())
        except queue.Empty:
            pass

    def _step(self, plan: Plan) -> None:
        began = self._clock()
        tokens: dict[int, int] = {}
        try:
            if plan.prefill:
                for chunk, token in zip(plan.prefill, self._engine.prefill(plan.prefill), strict=True):
                    if token is not None:
                        tokens[chunk.slot] = token
            if plan.decode:
                tokens.update(zip(plan.decode, self._engine.decode(plan.decode), strict=True))
        except Exception as error:  # noqa: BLE001 - an engine may fail in any way; its requests must end, not hang
            self.failure = f"engine {self._engine.info.name} failed in a step: {type(error).__name__}: {error}"
            self._scheduler.fail_all(self._clock(), status="error", message=self.failure)
            return
        self._scheduler.complete(tokens, began=began, now=self._clock())

    def _flush(self) -> None:
        events = self._scheduler.take_events()
        if events:
            self._deliver(events)
            for observer in self._observers:
                observer.observe(events)
