"""The tuner of a running stack: it ticks on the event loop, and its decisions are applied and shown to observers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from muai_lab.errors import MuaiError
from muai_lab.stack.events import Event, Observer, Tuned, TunerNoted
from muai_lab.stack.online.knobs import Knob, KnobBounds, Values, bounds_of, values_of
from muai_lab.stack.online.memory import TunerMemory
from muai_lab.stack.online.tuner import BLOCKS_PER_INTERVAL, OnlineTuner
from muai_lab.stack.online.window import Targets, TunerWindow

if TYPE_CHECKING:
    from muai_lab.settings.schema import OptimizationSettings, TunerSettings

log = logging.getLogger(__name__)

Apply = Callable[[dict[str, Any]], Awaitable[object]]

_SECTIONS = {Knob.BATCH: "batcher", Knob.TIMEOUT: "batcher", Knob.CACHE: "cache"}


class Tap:
    """An observer that passes events on to the present listener; almost free without one."""

    def __init__(self) -> None:
        self.listener: Observer | None = None

    def observe(self, events: Sequence[Event]) -> None:
        """Take in the events; see `muai_lab.stack.events.Observer`."""
        listener = self.listener
        if listener is not None:
            listener.observe(events)


class TuningLoop:
    """Tunes one stack on one engine, from `run` until that is cancelled.

    configured: the settings as the operator gave them. in_force: the present ones, which differ if an earlier tuner
    moved them. start: values to begin with; None: those in force, or those kept from before a restart. apply: changes
    the running stack, with the argument of `InferenceStack.reconfigure`. show: shows events to the observers.
    """

    def __init__(
        self,
        model: str,
        engine: str,
        configured: OptimizationSettings,
        in_force: OptimizationSettings,
        *,
        slots: int,
        caches: bool,
        tap: Tap,
        apply: Apply,
        show: Callable[[Sequence[Event]], None],
        start: Values | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._name = f"{model} on {engine}"
        self._configured = configured
        self._in_force = values_of(in_force)
        self._bounds = bounds_of(configured, slots=slots, caches=caches)
        self._memory = TunerMemory(model, engine, configured)
        self._tap = tap
        self._apply = apply
        self._show = show
        self._clock = clock
        self._sleep = sleep
        self._start_with = start
        self._tuner: OnlineTuner | None = None
        self._window: TunerWindow | None = None

    @property
    def good(self) -> Values | None:
        """The values that are not on trial; None before the tuner has begun."""
        return None if self._tuner is None else self._tuner.good

    def undo(self) -> dict[str, Any]:
        """Return the changes that revert the present trial."""
        good = self.good
        return {} if good is None else _changes(self._in_force, good)

    async def run(self) -> None:
        """Tick until cancelled."""
        try:
            while True:
                try:
                    await self._tune()
                except MuaiError as error:
                    # The engine may hang, or the operator changed the settings meanwhile. The values in force are not
                    # known any more, so the tuner begins again from the configured ones.
                    log.warning("tuner of %s: the change could not be made, it begins anew: %s", self._name, error)
                    self._start_with = values_of(self._configured)
                    await self._sleep(self._configured.tuner.tuning_interval_seconds)
        except Exception:
            log.exception("tuner of %s failed; what is in force stays", self._name)
        finally:
            if self._tap.listener is self._window:  # and not the window of a later tuner
                self._tap.listener = None

    async def _tune(self) -> None:
        settings = self._configured.tuner
        now, targets = self._clock(), targets_of(settings)
        interval_s, window_s = settings.tuning_interval_seconds, settings.observation_window_seconds
        block_s = interval_s / BLOCKS_PER_INTERVAL
        self._window = window = TunerWindow(targets, block_s=block_s, window_s=window_s, began=now)
        self._tuner = tuner = OnlineTuner(
            window,
            home=values_of(self._configured),
            bounds=self._bounds,
            targets=targets,
            interval_s=interval_s,
            window_s=window_s,
            began=now,
            adaptive=self._configured.batcher.adaptive_batching,
            start=await self._start(),
        )
        log.info("tuner of %s: moves %s", self._name, _in_words(self._bounds))
        await self._make(tuner.values, self._began(tuner.values, now))
        self._tap.listener = window
        while True:
            await self._sleep(block_s)
            decisions = tuner.tick(self._clock())
            if decisions:
                await self._make(tuner.values, decisions)
            if any(isinstance(event, Tuned) and event.outcome == "kept" for event in decisions):
                await asyncio.to_thread(self._memory.save, tuner.good)

    async def _start(self) -> Values | None:
        """Return the first values: those of an earlier tuner in this process, else those that a process before kept."""
        if self._start_with is not None:
            return self._start_with
        if self._in_force != values_of(self._configured):
            return self._in_force
        return await asyncio.to_thread(self._memory.load)

    def _began(self, values: Values, now: float) -> list[Tuned]:
        """Return the event of each knob's first value."""
        decisions = []
        for knob in Knob:
            before, after = self._in_force.of(knob), values.of(knob)
            outcome, reason = ("began", "in force") if before == after else ("restored", "good before the restart")
            decisions.append(Tuned(now, knob.value, before, after, outcome, reason))
        return decisions

    async def _make(self, values: Values, decisions: Sequence[Tuned | TunerNoted]) -> None:
        """Apply the changed values, then show the events to the observers."""
        if values != self._in_force:
            await self._apply(_changes(self._in_force, values))
            self._in_force = values
        for event in decisions:
            _log(self._name, event)
        self._show(decisions)


def targets_of(settings: TunerSettings) -> Targets:
    """Return the configured targets of a good request."""
    return Targets(
        ttft_s=None if settings.ttft_target_ms is None else settings.ttft_target_ms / 1000,
        tpot_s=None if settings.tpot_target_ms is None else settings.tpot_target_ms / 1000,
    )


def _changes(before: Values, after: Values) -> dict[str, Any]:
    """Return the changes that lead to `after`, shaped like the settings."""
    changes: dict[str, Any] = {}
    for knob in before.moved(after):
        changes.setdefault(_SECTIONS[knob], {})[knob.value] = after.of(knob)
    return changes


def _log(name: str, event: Tuned | TunerNoted) -> None:
    if isinstance(event, TunerNoted):
        log.info("tuner of %s: %s: %s", name, event.kind, event.reason)
    elif event.outcome != "began":
        log.info(
            "tuner of %s: %s %d -> %d %s: %s",
            *(name, event.knob, event.before, event.after, event.outcome, event.reason),
        )


def _in_words(bounds: KnobBounds) -> str:
    reaches = [f"{knob.value} from {reach.low} to {reach.high}" for knob, reach in bounds.reaches.items()]
    return ", ".join(reaches) or "nothing: no switch is on, or nothing that is switched on would have an effect"
