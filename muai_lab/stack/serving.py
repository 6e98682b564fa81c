"""An engine together with the driver that runs it, opened from the candidates in the order of preference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from muai_lab.engines.base import EngineInfo, StepEngine
from muai_lab.engines.catalogue import AnyEngine
from muai_lab.engines.selection import EngineCandidates
from muai_lab.errors import EngineError
from muai_lab.stack.driver import StepDriver
from muai_lab.stack.events import Event, Observer
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.scheduler import Scheduler
from muai_lab.stack.streaming import StreamingDriver

Deliver = Callable[[Sequence[Event]], None]
MakeObservers = Callable[[EngineInfo], Sequence[Observer]]


@dataclass(frozen=True, slots=True)
class Serving:
    """A loaded engine and the thread that runs it."""

    engine: AnyEngine
    driver: StepDriver | StreamingDriver


def open_serving(
    candidates: EngineCandidates, limits: BatchLimits, deliver: Deliver, observers: MakeObservers
) -> Serving:
    """The first of the candidates that loads and runs; blocks for as long as that takes.

    Raises EngineError when none is left, or at the first failure where there is no fallback.
    """
    while True:
        engine = candidates.next()
        try:
            return Serving(engine, _drive(engine, limits, deliver, observers))
        except EngineError as error:
            candidates.skip(error.engine, error.reason)


def _drive(
    engine: AnyEngine, limits: BatchLimits, deliver: Deliver, observers: MakeObservers
) -> StepDriver | StreamingDriver:
    limits = limits.within(engine.slots)
    if isinstance(engine, StepEngine):
        scheduler = Scheduler(limits, slots=engine.slots, eos_token_ids=engine.eos_token_ids, prompts=engine.prompts)
        return StepDriver(engine, scheduler, deliver, observers=observers(engine.info))
    # An engine that schedules itself knows its own end-of-sequence tokens, and says so by its finish reason.
    return StreamingDriver(engine, Scheduler(limits, slots=engine.slots), deliver, observers=observers)
