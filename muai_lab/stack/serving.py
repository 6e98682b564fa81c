"""An engine with the driver that runs it, opened from the candidates in the order of preference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muai_lab.engines.base import EngineInfo, StepEngine
from muai_lab.engines.catalogue import AnyEngine
from muai_lab.engines.selection import EngineCandidates
from muai_lab.errors import EngineError
from muai_lab.stack.caching import cache_problem, open_cache
from muai_lab.stack.driver import Deliver, EngineDriver
from muai_lab.stack.events import Observer
from muai_lab.stack.limits import batch_limits
from muai_lab.stack.scheduler import Scheduler
from muai_lab.stack.step_driver import StepDriver
from muai_lab.stack.stream_batcher import StreamBatcher
from muai_lab.stack.streaming_driver import StreamingDriver

if TYPE_CHECKING:
    from muai_lab.settings.schema import OptimizationSettings

MakeObservers = Callable[[EngineInfo], Sequence[Observer]]


@dataclass(frozen=True, slots=True)
class Serving:
    """A loaded engine and the thread that runs it."""

    engine: AnyEngine
    driver: EngineDriver


def open_serving(
    candidates: EngineCandidates, optimization: OptimizationSettings, deliver: Deliver, observers: MakeObservers
) -> Serving:
    """Open the first candidate that loads and runs. Blocks until it is loaded.

    Raises EngineError if no candidate is left, or at the first failure if fallback is off.
    """
    while True:
        engine = candidates.next()
        try:
            return Serving(engine, _drive(engine, optimization, deliver, observers))
        except EngineError as error:
            candidates.skip(error.engine, error.reason)


def _drive(
    engine: AnyEngine, optimization: OptimizationSettings, deliver: Deliver, observers: MakeObservers
) -> EngineDriver:
    limits = batch_limits(optimization).within(engine.slots)
    if isinstance(engine, StepEngine):
        problem = cache_problem(optimization, engine)
        if problem is not None:
            engine.close()
            raise EngineError(engine.info.name, problem)
        scheduler = Scheduler(
            limits,
            slots=engine.slots,
            eos_token_ids=engine.eos_token_ids,
            prompts=engine.prompts,
            cache=open_cache(optimization, engine),
        )
        return StepDriver(engine, scheduler, deliver, observers=observers(engine.info))
    # An engine that schedules itself knows its own end-of-sequence tokens, and reports them as its finish reason.
    return StreamingDriver(engine, StreamBatcher(limits, slots=engine.slots), deliver, observers=observers)
