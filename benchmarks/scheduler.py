"""Overhead of the scheduler: plan and complete of one step, by running sequences, and the way to observers.

python -m benchmarks.scheduler
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Sequence

from muai_lab.stack.events import Event
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.observers import ObserverList
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.scheduler import Scheduler

_STEPS = 400
_REPEATS = 9


def step_us(running: int, *, adaptive: bool) -> float:
    """Microseconds of plan, complete and take_events of one step in which `running` sequences decode (median)."""
    took = []
    for _ in range(_REPEATS):
        limits = BatchLimits(running, max_prefill_tokens=4096, adaptive=adaptive, latency_target_s=1.0)
        scheduler = Scheduler(limits, slots=running)
        for number in range(running):
            scheduler.add(GenerationRequest(str(number), [1, 2, 3], max_tokens=10**9), 0.0)
        plan = scheduler.plan(0.0)
        scheduler.complete({chunk.slot: 7 for chunk in plan.prefill}, began=0.0, now=0.0)
        scheduler.take_events()
        tokens = dict.fromkeys(range(running), 7)
        gc.collect()
        began = time.perf_counter()
        for at in range(_STEPS):
            scheduler.plan(float(at))
            scheduler.complete(tokens, began=float(at), now=float(at))
            scheduler.take_events()
        took.append((time.perf_counter() - began) / _STEPS)
    return statistics.median(took) * 1e6


class _Sink:
    def observe(self, events: Sequence[Event]) -> None:
        """Take the events in and do nothing."""


def observers_us(observers: int) -> float:
    """Microseconds per event from the scheduler to its observers (median)."""
    scheduler = Scheduler(BatchLimits(1), slots=1)
    for number in range(1000):
        scheduler.add(GenerationRequest(str(number), [1], max_tokens=1), 0.0)
    events = scheduler.take_events()
    shown = ObserverList([_Sink() for _ in range(observers)])
    took = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        for at in range(0, len(events), 10):  # a step's worth at a time
            shown.show(events[at : at + 10])
        took.append((time.perf_counter() - began) / len(events))
    return statistics.median(took) * 1e6


def main() -> int:
    """Print the figures."""
    out = sys.stdout
    out.write("plan + complete + take_events, one step, median of repeats (target: 20 µs + 2 µs a running sequence)\n")
    for running in (1, 8, 32, 128, 256):
        fixed, adaptive = step_us(running, adaptive=False), step_us(running, adaptive=True)
        allowed = 20 + 2 * running
        out.write(f"  {running:4d} running: {fixed:7.1f} µs, adaptive {adaptive:7.1f} µs of {allowed} µs\n")
    out.write("events to observers, per event (target: 1 µs where monitoring is off)\n")
    for observers in (0, 1):
        out.write(f"  {observers} observers: {observers_us(observers):.3f} µs\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
