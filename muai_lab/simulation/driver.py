"""The driver of virtual time.

It makes the scheduler's steps as `muai_lab.stack.step_driver` does, with the same observers. The clock is a number, and
a model gives the duration of each step. Whatever happens while a step runs (an arrival, a change of limits) reaches the
scheduler at its end, as it does through the inbox of the real driver.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from muai_lab.errors import Overloaded
from muai_lab.simulation.engine import VirtualEngine
from muai_lab.simulation.traffic import SimulatedRequest
from muai_lab.stack.admission import check_room
from muai_lab.stack.events import Observer, Rejected
from muai_lab.stack.observers import ObserverList
from muai_lab.stack.plan import Plan
from muai_lab.stack.scheduler import Scheduler
from muai_lab.stack.step import CopiedOut, StepOutcome, run_step

Action = Callable[[float], None]


class VirtualDriver:
    """One engine in virtual time.

    queue_capacity: most requests that may wait, None for no bound; more are rejected, as in the real stack. The same
    requests, limits and seed give the same events.
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
        """Call `action(now)` between two steps, at `time_s` or as soon as the step that runs then has ended."""
        self._count += 1
        heapq.heappush(self._agenda, (time_s, self._count, action))

    def every(self, period_s: float, action: Action) -> None:
        """Call `action(now)` once every period from now on, until the run ends."""

        def tick(due_s: float, now: float) -> None:
            action(now)
            self.at(due_s + period_s, lambda later: tick(due_s + period_s, later))

        first = self.now + period_s
        self.at(first, lambda now: tick(first, now))

    def offer(self, requests: Iterable[SimulatedRequest]) -> None:
        """Let requests arrive, each at its own time; `requests` must be in the order of these times.

        They are read one by one, so the iterator may be endless.
        """
        self._await_next(iter(requests))

    def run(self, until_s: float = math.inf) -> None:
        """Continue until `until_s`, or until nothing is left to do. A step that has begun is finished."""
        agenda = self._agenda
        while self.now < until_s:
            while agenda and agenda[0][0] <= self.now:
                heapq.heappop(agenda)[2](self.now)
            plan = run_step(self.scheduler, self.now, self._carry_out, self._flush)
            if plan.empty:
                times = [agenda[0][0]] if agenda else []
                if plan.wait_until is not None:
                    times.append(plan.wait_until)
                if not times:
                    return
                self.now = min(max(self.now, min(times)), until_s)

    def _carry_out(self, plan: Plan, copied_out: CopiedOut) -> StepOutcome:
        began = self.now
        for out in plan.copy_out:
            copied_out(out, self._engine.copy_out(out))
        tokens, seconds = self._engine.step(plan)
        self.now = began + seconds
        return tokens, began, self.now

    def _await_next(self, requests: Iterator[SimulatedRequest]) -> None:
        request = next(requests, None)
        if request is None:
            return

        def arrive(now: float) -> None:
            self._submit(request, now)
            self._await_next(requests)

        self.at(request.at_s, arrive)

    def _submit(self, request: SimulatedRequest, now: float) -> None:
        scheduler = self.scheduler
        try:
            check_room(1, scheduler.waiting + scheduler.running, self._engine.slots, self._queue_capacity)
        except Overloaded as error:
            self._observers.show([Rejected(now, str(error))])
        else:
            scheduler.add(request.generation(), now)

    def _flush(self) -> None:
        events = self.scheduler.take_events()
        if events:
            self._observers.show(events)
