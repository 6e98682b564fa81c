"""Runs a scheduler against a real engine, in a thread of its own.

The thread owns scheduler and engine: everything else reaches them through its inbox, so there are no locks, and the
event loop goes on answering while a step computes. The tokens of a step are handed over in one call while the next step
already runs.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from muai_lab.engines.base import PrefillChunk, SlotFaults, StepEngine
from muai_lab.stack.change import Change, PendingChange
from muai_lab.stack.events import Event, Observer
from muai_lab.stack.observers import ObserverList
from muai_lab.stack.plan import Plan
from muai_lab.stack.recovery import recover
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.scheduler import Scheduler

log = logging.getLogger(__name__)

Command = Callable[[float], None]

_CLOSE_S = 30.0  # what a step may take that runs while the driver is closed; a hung one never ends
_LONGEST_SLEEP_S = 3600.0  # a thread cannot wait for longer than some platform's limit; waking up early costs nothing


class StepDriver:
    """One engine thread.

    deliver: gets every batch of events, in order, on the engine's thread; it must only pass them on. Whatever engine,
    scheduler or observers do, every request ends with an event (`Lost` when the engine died under it), and a failure is
    told in `failure` and in the log. A step that raises ends the engine only if it cannot compute anything any more
    (see `recover`); else the scheduler finds the request that is to blame.
    """

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
        self._observers = ObserverList(observers)
        self._clock = clock
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._closing = False
        self._abandoned = False
        self._step_began: float | None = None
        self._plan = Plan()  # of the present step
        self.failure: str | None = None  # why the engine can no longer run, once it cannot
        self._thread = threading.Thread(target=self._run, name=f"engine-{engine.info.name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True while the engine thread runs and its engine has not failed."""
        return self._thread.is_alive() and self.failure is None

    def add(self, request: GenerationRequest, *, suspect: bool = False) -> None:
        """Queue a request; its events follow. suspect: see `Scheduler.add`."""
        self._inbox.put(lambda now: self._add(request, now, suspect=suspect))

    def finish(self, request_id: str) -> None:
        """End a request with success: its text met a stop string."""
        self._inbox.put(lambda now: self._scheduler.finish(request_id, now))

    def fail(self, request_id: str, *, status: str, message: str) -> None:
        """End a request without a result (see `Scheduler.fail`) and free its slot before the next step."""
        self._inbox.put(lambda now: self._scheduler.fail(request_id, now, status=status, message=message))

    def show(self, events: Sequence[Event]) -> None:
        """Show observers what happened outside the scheduler; on the engine's thread, like all events."""
        if self._abandoned:
            self._observers.show(events)  # its thread shows nothing any more
        else:
            self._inbox.put(lambda _now: self._observers.show(events))

    def apply(self, change: Change) -> Future[None]:
        """Change the scheduler between two steps; the future ends when that is done, with what `change` raised."""
        pending = PendingChange(change)
        self._inbox.put(lambda now: pending.make(self._scheduler, now))
        return pending.done

    def stalled_s(self) -> float:
        """Seconds that the present step has run for; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else max(0.0, self._clock() - began)

    def computing(self) -> frozenset[str]:
        """Requests that the present step computes; for a step that does not return."""
        slots = (*self._plan.decode, *(chunk.slot for chunk in self._plan.prefill))
        return frozenset(self._scheduler.names_in(slots))

    def abandon(self, reason: str) -> None:
        """Give up an engine whose step does not return: `failure` says why, and nothing is delivered any more.

        Its thread, which nobody can end, is left behind; should the step return after all, it closes the engine.
        """
        self._abandoned = True
        self.failure = reason
        log.error("engine %s is given up: %s", self._engine.info.name, reason)
        self._inbox.put(self._begin_close)

    def close(self) -> None:
        """End what still runs as cancelled, close the engine, end the thread. Blocks until the present step is over.

        An engine that hangs is left behind, with its thread, after `_CLOSE_S` seconds.
        """
        if self._abandoned:
            return
        self._inbox.put(self._begin_close)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            log.error("engine %s hangs in a step; it is left behind", self._engine.info.name)

    def _begin_close(self, now: float) -> None:
        self._closing = True
        self._scheduler.fail_all(now, status="cancelled", message="the stack was closed")

    def _add(self, request: GenerationRequest, now: float, *, suspect: bool) -> None:
        self._scheduler.add(request, now, suspect=suspect)
        if self._closing:
            self._scheduler.fail(request.request_id, now, status="cancelled", message="the stack was closed")
        elif self.failure is not None:
            self._scheduler.lose(request.request_id, now, message=self.failure)

    def _run(self) -> None:
        plan = Plan()
        while not self._closing:
            try:
                plan = self._turn(plan)
            except Exception as error:  # noqa: BLE001 - an engine may fail in any way; its requests must end, not hang
                self._fail(error)
                plan = Plan()
        self._flush()
        try:
            self._engine.close()
        except Exception:  # the thread ends here, so nobody else could tell
            log.exception("engine %s failed while it was closed", self._engine.info.name)

    def _turn(self, previous: Plan) -> Plan:
        """Take commands (sleep for them if there was nothing to compute), then plan and run one step."""
        self._take_commands(block=previous.empty, until=previous.wait_until)
        if self._closing or self.failure is not None:
            self._flush()
            return Plan()
        plan = self._scheduler.plan(self._clock())
        self._flush()
        self._plan, self._step_began = plan, self._clock()
        try:
            self._carry_out(plan, self._step_began)
        finally:
            self._step_began = None
        self._flush()
        return plan

    def _carry_out(self, plan: Plan, began: float) -> None:
        try:
            self._copy_and_release(plan)
        except Exception as error:  # noqa: BLE001 - as for a step
            # Without copies it was a release that failed: then nothing is left to try.
            self._recover((), error, began, hopeless=not (plan.copy_out or plan.copy_in))
            return
        if not plan.empty:
            self._step(plan, began)

    def _copy_and_release(self, plan: Plan) -> None:
        for out in plan.copy_out:
            begin, size = out.store.begin, out.store.block_tokens
            end = begin + len(out.store.blocks) * size
            self._scheduler.copied_out(out, self._engine.copy_out(out.slot, begin, end, size))
        for slot in plan.release:
            self._engine.release(slot)
        for copy in plan.copy_in:
            self._engine.copy_in(copy.slot, copy.payloads)

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

    def _step(self, plan: Plan, began: float) -> None:
        tokens: dict[int, int] = {}
        faults: dict[int, Exception] = {}
        computed: Sequence[int] = plan.decode
        try:
            # Decode first: sequences that join would only look on. Both results are handed over at the end of the step.
            if plan.decode:
                tokens.update(self._decode(plan.decode, faults))
            if plan.prefill:
                computed = [chunk.slot for chunk in plan.prefill]
                tokens.update(self._prefill(plan.prefill, faults))
        except Exception as error:  # noqa: BLE001 - an engine may fail in any way
            self._recover(computed, error, began)
            return
        self._scheduler.complete(tokens, began=began, now=self._clock())
        for slot, fault in faults.items():
            self._fail_one(slot, fault)

    def _decode(self, slots: Sequence[int], faults: dict[int, Exception]) -> Mapping[int, int]:
        """Tokens by slot; those that failed are added to `faults`."""
        try:
            return dict(zip(slots, self._engine.decode(slots), strict=True))
        except SlotFaults as partly:
            faults.update(partly.faults)
            return partly.tokens

    def _prefill(self, chunks: Sequence[PrefillChunk], faults: dict[int, Exception]) -> Mapping[int, int]:
        """The same for prompts; those that are not complete have no token."""
        try:
            tokens = self._engine.prefill(chunks)
        except SlotFaults as partly:
            faults.update(partly.faults)
            return partly.tokens
        paired = zip(chunks, tokens, strict=True)
        return {chunk.slot: token for chunk, token in paired if token is not None}

    def _fail_one(self, slot: int, error: Exception) -> None:
        """A step failed for one slot, and the engine has told which."""
        name = self._engine.info.name
        request_id = self._scheduler.request_in(slot).request_id
        log.error("engine %s failed for request %s", name, request_id, exc_info=error)
        message = f"engine {name} failed for this request: {_told(error)}"
        self._scheduler.fail(request_id, self._clock(), status="error", message=message)

    def _recover(self, computed: Sequence[int], error: Exception, began: float, *, hopeless: bool = False) -> None:
        """A step, or its copies, raised: go on without the request that is to blame, or end the engine."""
        name = self._engine.info.name
        tested = self._scheduler.on_trial  # then it fails as it is expected to, and the log has said why
        log.error("engine %s failed in a step of %d sequences", name, len(computed), exc_info=None if tested else error)
        message = f"engine {name} failed in a step: {_told(error)}"
        try:
            if hopeless:
                raise error
            recover(self._engine)
        except Exception as fatal:  # noqa: BLE001 - whatever it is, no step can be made any more
            if fatal is not error:
                log.error("engine %s cannot go on: %s", name, _told(fatal))
            self._die(message, computed)
            return
        self._scheduler.step_failed(computed, began=began, now=self._clock(), message=message)

    def _fail(self, error: Exception) -> None:
        """The scheduler itself has failed: nothing can be relied on."""
        name = self._engine.info.name
        log.error("engine %s failed in a step", name, exc_info=error)
        self._die(f"engine {name} failed in a step: {_told(error)}", None)

    def _die(self, message: str, computed: Sequence[int] | None) -> None:
        """The engine is done for: every request is lost, and so is every later one.

        computed: slots of the fatal step, None if there was none.
        """
        self.failure = message
        self._scheduler.lose_all(self._clock(), message=message, computed=computed)
        self._flush()
        self._deliver([])  # word of the failure, also when no request was under way

    def _flush(self) -> None:
        events = self._scheduler.take_events()
        if not events or self._abandoned:
            return
        # Observers first: who has seen a request end finds it counted.
        self._observers.show(events)
        self._deliver(events)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
