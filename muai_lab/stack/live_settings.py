"""The settings of a running stack: changed by its operator, moved by its tuner, applied between two steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from muai_lab.errors import EngineError, SettingsError
from muai_lab.settings.live import changed
from muai_lab.stack.caching import cache_budget, cache_problem, caches
from muai_lab.stack.limits import batch_limits
from muai_lab.stack.online.loop import Tap, TuningLoop

if TYPE_CHECKING:
    from muai_lab.settings.schema import OptimizationSettings
    from muai_lab.stack.batcher import Batcher
    from muai_lab.stack.online.knobs import Values
    from muai_lab.stack.serving import Serving

_CHANGE_S = 30.0  # that a change of settings waits for the present step

_TOO_LARGE = (
    "optimization.batcher.max_batch_size = {}: the engine was opened with {} slots; for more, start the server with "
    "a larger optimization.batcher.max_slots"
)
_OWN_CACHE = (
    "optimization.cache cannot be changed while engine {} serves: it keeps no prefixes of ours, and a cache of its own "
    "has the size it was started with; start the server with other values"
)


class LiveSettings:
    """The settings in force, and the tuner that moves them. Belongs to one event loop, like the stack.

    serving: returns the present engine and its driver.
    """

    def __init__(self, model: str, optimization: OptimizationSettings, serving: Callable[[], Serving]) -> None:
        self.in_force = optimization
        self.tap = Tap()
        self._model = model
        self._serving = serving
        self._configured = optimization  # without the tuner's moves
        self._changing = asyncio.Lock()
        self._tuner: TuningLoop | None = None
        self._tuning: asyncio.Task[None] | None = None

    @property
    def tuning(self) -> bool:
        """True if the tuner was started; with `tuner.enabled` off it never is."""
        return self._tuning is not None

    @property
    def good(self) -> Values | None:
        """The best values that the tuner has found, for its successor on another engine."""
        return None if self._tuner is None else self._tuner.good

    async def change(self, changes: Mapping[str, Any]) -> None:
        """See `InferenceStack.reconfigure`."""
        async with self._changing:
            configured = changed(self._configured, changes)
            engine = self._serving().engine
            if configured.cache != self._configured.cache and not caches(engine):
                raise SettingsError([_OWN_CACHE.format(engine.info.name)])
            undo = {} if self._tuner is None else self._tuner.undo()
            await self._enforce(changed(changed(self.in_force, undo), changes))
            self._configured = configured
        self.tune_anew()

    def tune_anew(self, start: Values | None = None) -> None:
        """Start the tuner anew for the present engine and settings, or stop it. start: values to begin with."""
        self.stop_tuning()
        if not (self._configured.enabled and self._configured.tuner.enabled):
            return
        serving = self._serving()
        self._tuner = TuningLoop(
            self._model,
            serving.engine.info.name,
            self._configured,
            self.in_force,
            slots=serving.engine.slots,
            caches=caches(serving.engine),
            tap=self.tap,
            apply=self._apply_tuned,
            show=lambda events: self._serving().driver.show(events),
            start=start,
        )
        self._tuning = asyncio.get_running_loop().create_task(self._tuner.run(), name=f"tuner of {self._model}")

    def stop_tuning(self) -> None:
        """End the tuner. The values that it moved stay in force."""
        if self._tuning is not None:
            self._tuning.cancel()
        self._tuner = self._tuning = None

    def forget_loop(self) -> None:
        """Drop the tuner, because the event loop that it ran on has ended."""
        self._tuner = self._tuning = None

    async def _apply_tuned(self, changes: Mapping[str, Any]) -> None:
        async with self._changing:
            await self._enforce(changed(self.in_force, changes))

    async def _enforce(self, wanted: OptimizationSettings) -> None:
        serving = self._serving()
        limits, slots = batch_limits(wanted), serving.engine.slots
        problems = [_TOO_LARGE.format(limits.max_batch_size, slots)] if limits.max_batch_size > slots else []
        if (problem := cache_problem(wanted, serving.engine)) is not None:
            problems.append(problem)
        if problems:
            raise SettingsError(problems)

        def apply(batcher: Batcher, now: float) -> None:
            batcher.set_limits(limits, now)
            batcher.set_cache(cache_budget(wanted), wanted.cache.eviction_policy, now)

        done = serving.driver.apply(apply)
        try:
            await asyncio.wait_for(asyncio.wrap_future(done), _CHANGE_S)
        except TimeoutError as error:
            reason = f"it has not come to the change within {_CHANGE_S:g} s: a step may hang"
            raise EngineError(serving.engine.info.name, reason) from error
        self.in_force = wanted
