"""A simulated stack that may be tuned while it serves, and the service that its clients get."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from muai_lab.simulation.driver import VirtualDriver
from muai_lab.simulation.engine import VirtualEngine
from muai_lab.simulation.step_time import StepTime
from muai_lab.simulation.traffic import SimulatedRequest
from muai_lab.slo import meets, pace_s
from muai_lab.stack.events import Event, Finished, Tuned, TunerNoted
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.online.knobs import KnobBounds, Values
from muai_lab.stack.online.tuner import BLOCKS_PER_INTERVAL, OnlineTuner
from muai_lab.stack.online.window import Targets, TunerWindow
from muai_lab.stack.prefix_cache import BLOCK_TOKENS, PrefixCache
from muai_lab.stack.scheduler import Scheduler

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Setup:
    """The simulated stack.

    limits: the values that are not tuned. noise: relative, of the step times. position_bytes: of the keys and values of
    one position; 0 for an engine without a prefix cache.
    """

    step_time: StepTime
    limits: BatchLimits
    slots: int
    targets: Targets
    queue_capacity: int = 100
    noise: float = 0.05
    position_bytes: int = 0

    def limits_for(self, values: Values) -> BatchLimits:
        """Return the limits under these values of the knobs."""
        return replace(self.limits, max_batch_size=values.max_batch_size, timeout_s=values.batch_timeout_ms / 1000)

    def open(self, values: Values, seed: int) -> tuple[Scheduler, VirtualEngine]:
        """Return a scheduler under these values, and its engine."""
        block_bytes = BLOCK_TOKENS * self.position_bytes
        cache = PrefixCache(values.max_memory_mb * _MIB, block_bytes=block_bytes) if block_bytes else None
        scheduler = Scheduler(self.limits_for(values), slots=self.slots, cache=cache)
        return scheduler, VirtualEngine(
            self.slots, self.step_time, noise=self.noise, seed=seed, block_bytes=block_bytes
        )

    def enforce(self, values: Values, scheduler: Scheduler, now: float) -> None:
        """Apply these values, as a change of the running stack does."""
        scheduler.set_limits(self.limits_for(values), now)
        scheduler.set_cache(values.max_memory_mb * _MIB, "lru", now)


@dataclass(frozen=True, slots=True)
class Tuning:
    """The settings of the tuner."""

    bounds: KnobBounds
    interval_s: float
    window_s: float


class GoodRequests:
    """An observer that counts good requests by their due time, with latencies from arrival on, as a client does."""

    def __init__(self, requests: Sequence[SimulatedRequest], targets: Targets, interval_s: float, count: int) -> None:
        self._due = [request.at_s for request in requests]
        self._targets = targets
        self._interval_s = interval_s
        self.good = [0] * count
        self.offered = [0] * count
        for due in self._due:
            self.offered[int(due / interval_s)] += 1

    def observe(self, events: Sequence[Event]) -> None:
        """Take in the events; see `muai_lab.stack.events.Observer`."""
        for event in events:
            if isinstance(event, Finished) and self._is_good(event):
                self.good[int(self._due[int(event.request_id)] / self._interval_s)] += 1

    def _is_good(self, event: Finished) -> bool:
        latencies_s = {
            "ttft": event.first_token_at - self._due[int(event.request_id)],
            "tpot": pace_s(event.at - event.first_token_at, event.output_tokens),
        }
        return meets(self._targets.bounds_s, latencies_s, event.output_tokens)


@dataclass(frozen=True, slots=True)
class SimulatedOutcome:
    """Good and offered requests by the interval in which they were due, and the tuner's decisions."""

    good: tuple[int, ...]
    offered: tuple[int, ...]
    decisions: tuple[Tuned | TunerNoted, ...] = ()


def simulate(
    setup: Setup,
    requests: Iterable[SimulatedRequest],
    values: Values,
    *,
    intervals: int,
    interval_s: float,
    tuning: Tuning | None = None,
    seed: int = 0,
) -> SimulatedOutcome:
    """Serve requests with fixed values, or under a tuner that begins with them.

    Args:
        setup: The stack.
        requests: All due within the intervals.
        values: Values of the knobs.
        intervals: Number of intervals.
        interval_s: Their length, in seconds.
        tuning: Settings of the tuner, None for fixed values.
        seed: Of the noise.

    Returns:
        The counts of each interval, and the tuner's decisions.
    """
    offered = list(requests)
    served = GoodRequests(offered, setup.targets, interval_s, intervals)
    scheduler, engine = setup.open(values, seed)
    decisions: list[Tuned | TunerNoted] = []
    if tuning is None:
        driver = VirtualDriver(scheduler, engine, observers=[served], queue_capacity=setup.queue_capacity)
    else:
        block_s = tuning.interval_s / BLOCKS_PER_INTERVAL
        window = TunerWindow(setup.targets, block_s=block_s, window_s=tuning.window_s, began=0.0)
        driver = VirtualDriver(scheduler, engine, observers=[served, window], queue_capacity=setup.queue_capacity)
        tuner = OnlineTuner(
            window,
            home=values,
            bounds=tuning.bounds,
            targets=setup.targets,
            interval_s=tuning.interval_s,
            window_s=tuning.window_s,
            began=0.0,
            adaptive=setup.limits.adaptive,
        )

        def tick(now: float) -> None:
            if now > intervals * interval_s:
                return  # the rest only drains
            made = tuner.tick(now)
            if made:
                decisions.extend(made)
                setup.enforce(tuner.values, scheduler, now)

        driver.every(block_s, tick)
    driver.offer(offered)
    driver.run(intervals * interval_s + 60.0)
    return SimulatedOutcome(tuple(served.good), tuple(served.offered), tuple(decisions))
