"""Runs a scheduler in virtual time.

The counterpart of `muai_lab.stack.driver`: the same scheduler, planned and completed in the same order, with the same
observers; only that the clock is a number, and that a step takes as long as a model says. What happens while a step
runs (an arrival, a change of limits) reaches the scheduler at its end, as it does through the inbox of the real one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from muai_lab.simulation.engine import VirtualEngine
from muai_lab.simulation.traffic import SimulatedRequest
from muai_lab.stack.events import Observer, Rejected
from muai_lab.stack.observers import ObserverList
from muai_lab.stack.scheduler import Scheduler

Action = Callable[[float], None]


class VirtualDriver:
    """One engine in virtual time.

    queue_capacity: most requests that may wait, None for no bound; more are rejected, as in the real stack. The run is
    a pure function of what is put in: the same requests, limits and seed give the same events.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        engine: VirtualEngine,
        *,
        observers: Sequence[Observer] = (),
        queue_capacity: int | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.now = 0.0
        self._engine = engine
        self._observers = ObserverList(observers)
        self._queue_capacity = queue_capacity
        self._agenda: list[tuple[float, int, Action]] = []  # a heap; the count keeps equal times in order
        self._count = 0

    def at(self, time_s: float, action: Action) -> None:
        """Call `action(now)` between two steps, as soon as `time_s` has come."""
        self._count += 1
        heapq.heappush(self._agenda, (time_s, self._count, action))

    def every(self, period_s: float, action: Action) -> None:
        """Call `action(now)` each period from now on, for as long as the run goes on."""

        def tick(due_s: float, now: float) -> None:
            action(now)
            self.at(due_s + period_s, lambda later: tick(due_s + period_s, later))

        first = self.now + period_s
        self.at(first, lambda now: tick(first, now))

    def offer(self, requests: Iterable[SimulatedRequest]) -> None:
        """Let these requests arrive, each at its time; they must come in the order of their times.

        They are drawn one by one, so that an endless iterator will do.
        """
        self._await_next(iter(requests))

    def run(self, until_s: float = math.inf) -> None:
        """Go on until that time, or until nothing is left to do; a step that has begun is finished."""
        scheduler, engine, agenda = self.scheduler, self._engine, self._agenda
        while self.now < until_s:
            now = self.now
            while agenda and agenda[0][0] <= now:
                heapq.heappop(agenda)[2](now)
            plan = scheduler.plan(now)
            self._flush()
            for out in plan.copy_out:
                scheduler.copied_out(out, engine.copy_out(out))
            if plan.empty:
                self.now = now = now + engine.release(plan)
                times = [agenda[0][0]] if agenda else []
                if plan.wait_until is not None:
                    times.append(plan.wait_until)
                if not times:
                    return
                self.now = min(max(now, min(times)), until_s)
            else:
                tokens, seconds = engine.step(plan)
                self.now = now + seconds
                scheduler.complete(tokens, began=now, now=self.now)
                self._flush()

    def _await_next(self, requests: Iterator[SimulatedRequest]) -> None:
        request = next(requests, None)
        if request is None:
            return

        def arrive(now: float) -> None:
            self._submit(request, now)
            self._await_next(requests)

        self.at(request.at_s, arrive)

    def _submit(self, request: SimulatedRequest, now: float) -> None:
        scheduler, capacity = self.scheduler, self._queue_capacity
        if capacity is not None and scheduler.waiting + scheduler.running - self._engine.slots >= capacity:
            self._observers.show([Rejected(now, f"the queue is full ({capacity} requests wait)")])
        else:
            scheduler.add(request.generation(), now)

    def _flush(self) -> None:
        events = self.scheduler.take_events()
        if events:
            self._observers.show(events)
