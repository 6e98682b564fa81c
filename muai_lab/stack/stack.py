"""The inference stack: one model on one engine behind the scheduler, used from an asyncio event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from muai_lab.engines.selection import EngineCandidates
from muai_lab.errors import EngineError, InvalidRequest, Overloaded, RequestCancelled
from muai_lab.models.registry import ModelSource, resolve_model
from muai_lab.models.tokenizer import ModelTokenizer, load_tokenizer
from muai_lab.stack.admission import RETRY_AFTER_S, check_room
from muai_lab.stack.checks import check_request
from muai_lab.stack.events import Rejected
from muai_lab.stack.failover import Failover
from muai_lab.stack.generation import Generation
from muai_lab.stack.info import StackCounts, StackInfo
from muai_lab.stack.limits import engine_slots
from muai_lab.stack.live_settings import LiveSettings
from muai_lab.stack.open_requests import OpenRequests
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.serving import MakeObservers
from muai_lab.stack.text import OutputText

if TYPE_CHECKING:
    from muai_lab.settings.schema import OptimizationSettings


class InferenceStack:
    """One model served by one engine at a time. `open` blocks; everything else runs on one event loop."""

    def __init__(
        self,
        model: str,
        source: ModelSource,
        tokenizer: ModelTokenizer,
        candidates: EngineCandidates,
        optimization: OptimizationSettings,
        *,
        queue_capacity: int | None = None,
        observers: MakeObservers = lambda _engine: (),
    ) -> None:
        """Load the first candidate that can serve. Raises EngineError if there is none."""
        self.tokenizer = tokenizer
        self._model = model
        self._source = source
        self._queue_capacity = queue_capacity
        self._draining = False
        self._requests = OpenRequests()
        self._settings = LiveSettings(model, optimization, lambda: self._failover.serving)
        self._failover = Failover(model, candidates, self._requests, self._settings, observers=observers)

    @classmethod
    def open(
        cls,
        optimization: OptimizationSettings,
        model: str,
        *,
        checkpoint: str | None = None,
        queue_capacity: int | None = None,
        observers: MakeObservers = lambda _engine: (),
    ) -> InferenceStack:
        """Load the model on the first engine that can serve it. Blocks for seconds.

        Args:
            optimization: The settings to serve under.
            model: Name of the model, as clients request it.
            checkpoint: Hub id or local directory; None for `optimization.models` or the embedded model of that name.
            queue_capacity: Most requests that may wait, None for no bound.
            observers: Returns the observers of each engine that serves.

        Raises:
            ModelError: The checkpoint cannot be found or read.
            EngineError: No engine can serve it.
        """
        source = resolve_model(model, checkpoint or optimization.models.get(model))
        tokenizer = load_tokenizer(source)
        candidates = EngineCandidates.of(optimization, source, slots=engine_slots(optimization))
        return cls(
            model, source, tokenizer, candidates, optimization, queue_capacity=queue_capacity, observers=observers
        )

    @property
    def info(self) -> StackInfo:
        """The model and the engine that serve at this moment."""
        failover = self._failover
        return StackInfo(
            self._model, self._source, failover.serving.engine.info, failover.skipped, self._queue_capacity
        )

    def check_room(self, sequences: int) -> None:
        """Refuse a request of this many sequences before its prompts are read; raises as `submit` does."""
        try:
            check_room(sequences, len(self._requests), self._failover.serving.engine.slots, self._queue_capacity)
        except (InvalidRequest, Overloaded) as error:
            self.refuse(error)
            raise

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request and return its output.

        Raises:
            InvalidRequest: The request can never be served.
            Overloaded: The queue is full, or the stack is shutting down.
            EngineError: No engine serves any more.
        """
        self._enter(asyncio.get_running_loop())
        try:
            self._check(request)
        except (InvalidRequest, Overloaded, EngineError) as error:
            self.refuse(error)
            raise
        self._failover.take_over_if_dead()
        generation = Generation(
            request,
            lambda: OutputText(self.tokenizer.stream(), request.stop),
            deadline=None if request.timeout_s is None else time.monotonic() + request.timeout_s,
            stopped=self._failover.finish,
            aborted=self._failover.fail,
        )
        self._requests.add(generation)
        self._failover.add(generation)
        if not self._settings.tuning:
            self._settings.tune_anew()
        return generation

    @property
    def optimization(self) -> OptimizationSettings:
        """The settings in force: as opened, and as changed since."""
        return self._settings.in_force

    async def reconfigure(self, changes: Mapping[str, Any]) -> OptimizationSettings:
        """Change batcher, cache or tuner while serving, from the next step on.

        No request is dropped: sequences above a lower limit run to their end.

        Args:
            changes: Shaped like the `optimization` section; holds only the values that change.

        Returns:
            The settings now in force.

        Raises:
            SettingsError: Every problem with the values; nothing is changed.
            EngineError: The engine has not come to the change in time; nothing is changed.
        """
        await self._settings.change(changes)
        return self._settings.in_force

    def counts(self) -> StackCounts:
        """Return the load at this moment."""
        waiting = len(self._requests.waiting)
        return StackCounts(waiting, len(self._requests) - waiting, self._failover.serving.engine.slots)

    def healthy(self) -> bool:
        """True while an engine serves, or another one may take over."""
        return self._failover.can_serve

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, wait for the open ones, cancel those that are left after `timeout_s` seconds."""
        self._draining = True
        try:
            await asyncio.wait_for(self._requests.all_ended(), timeout_s)
        except TimeoutError:
            for generation in list(self._requests.outputs.values()):
                generation.abort(RequestCancelled("the server is shutting down"))

    async def close(self) -> None:
        """Cancel what still runs, end the engine's thread and free the engine. Waits for a step that runs."""
        self._draining = True
        self._settings.stop_tuning()
        await self._failover.close()

    def refuse(self, error: Exception) -> None:
        """Show observers a request that is refused, here or before it came here."""
        self._failover.serving.driver.show([Rejected(time.monotonic(), str(error))])

    def _check(self, request: GenerationRequest) -> None:
        if self._draining:
            raise Overloaded("the server is shutting down", retry_after_s=RETRY_AFTER_S, draining=True)
        serving = self._failover.serving
        engine = serving.engine
        if not self.healthy():
            raise EngineError(engine.info.name, serving.driver.failure or "its thread ended")
        if request.request_id in self._requests.outputs:
            raise InvalidRequest(f"request id {request.request_id!r} is already in use", param="request_id")
        check_request(request, engine, vocabulary=engine.vocab_size or self.tokenizer.vocab_size)
        check_room(1, len(self._requests), engine.slots, self._queue_capacity)

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use `loop` from now on. Requests of the loop before it can no longer be awaited, so they end."""
        if self._failover.loop is loop:
            return
        self._failover.use_loop(loop)
        self._settings.forget_loop()
        for request_id in list(self._requests.outputs):
            self._failover.fail(request_id, RequestCancelled("the event loop that asked for it ended"))
        self._requests.clear()
