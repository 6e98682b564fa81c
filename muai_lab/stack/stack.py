"""The inference stack: one model on one engine behind the scheduler, spoken to from an asyncio event loop.

When the engine dies, the next one of the preference takes over: what nothing was streamed of is run again there, the
rest ends with an error, and new requests wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from muai_lab.engines.base import EngineInfo
from muai_lab.engines.selection import EngineCandidates
from muai_lab.errors import (
    EngineError,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    RequestError,
    RequestTimeout,
)
from muai_lab.models.registry import ModelSource, resolve_model
from muai_lab.models.tokenizer import ModelTokenizer, load_tokenizer
from muai_lab.stack.admission import RETRY_AFTER_S, check_room
from muai_lab.stack.checks import check_request
from muai_lab.stack.events import Admitted, CacheLookup, Event, Failed, Finished, Lost, Observer, Rejected, Token
from muai_lab.stack.generation import Generation
from muai_lab.stack.hang_watch import HangWatch
from muai_lab.stack.info import StackCounts, StackInfo
from muai_lab.stack.limits import engine_slots
from muai_lab.stack.live_settings import LiveSettings
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.serving import MakeObservers, Serving, open_serving
from muai_lab.stack.text import OutputText

if TYPE_CHECKING:
    from muai_lab.settings.schema import OptimizationSettings

log = logging.getLogger(__name__)

_MOST_DEATHS = 2  # of engines, after which a request that they computed is not run again

_FAILURES: dict[str, type[RequestError]] = {
    "cancelled": RequestCancelled,
    "timeout": RequestTimeout,
    "rejected": InvalidRequest,
}


class InferenceStack:
    """One model served by one engine at a time. `open` blocks; everything else runs on one event loop.

    `_open` holds the requests whose last event has not come yet, `_waiting` the ids of those without a slot, `_orphans`
    the ids of those that wait for the next engine, in order, while one engine takes over from another.
    """

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
        """Load the first candidate that can serve. Raises EngineError."""
        self.tokenizer = tokenizer
        self._model = model
        self._source = source
        self._candidates = candidates
        self._queue_capacity = queue_capacity
        self._observers = observers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: dict[str, Generation] = {}
        self._waiting: set[str] = set()
        self._orphans: dict[str, None] = {}
        self._takeover: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()  # of dead engines
        self._draining = False
        self._closed = False
        self._idle: asyncio.Event | None = None
        self._watch: asyncio.Task[None] | None = None
        self._settings = LiveSettings(model, optimization, lambda: self._serving)
        self._abandoned: set[object] = set()  # sources of events that nobody listens to any more
        self._hang_watch = HangWatch(
            self._open,
            lambda: self._serving if self._takeover is None else None,
            limit_s=lambda: self._settings.in_force.step_timeout_s,
            end=self._end_here,
            give_up=self._give_up_engine,
        )
        self._serving, self._source_of_events = self._open_serving()

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
        """Load the model on the first engine that can serve it; blocks for seconds.

        checkpoint: hub id or local directory, None for `optimization.models` or the embedded model of that name.
        queue_capacity: most requests that may wait, None for no bound. observers: those of each engine that serves.
        Raises ModelError or EngineError.
        """
        source = resolve_model(model, checkpoint or optimization.models.get(model))
        tokenizer = load_tokenizer(source)
        candidates = EngineCandidates.of(optimization, source, slots=engine_slots(optimization))
        return cls(
            model, source, tokenizer, candidates, optimization, queue_capacity=queue_capacity, observers=observers
        )

    @property
    def info(self) -> StackInfo:
        """What serves at this moment."""
        skipped = tuple(self._candidates.skipped)
        return StackInfo(self._model, self._source, self._serving.engine.info, skipped, self._queue_capacity)

    def check_room(self, sequences: int) -> None:
        """Refuse so many sequences of one request before their prompts are looked at; raises as `submit` does."""
        try:
            check_room(sequences, len(self._open), self._serving.engine.slots, self._queue_capacity)
        except (InvalidRequest, Overloaded) as error:
            self.refuse(error)
            raise

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request. Raises InvalidRequest for one that can never be served, Overloaded for one too many."""
        self._enter(asyncio.get_running_loop())
        try:
            self._check(request)
        except (InvalidRequest, Overloaded, EngineError) as error:
            self.refuse(error)
            raise
        self._take_over_if_dead()
        generation = Generation(
            request,
            lambda: OutputText(self.tokenizer.stream(), request.stop),
            deadline=None if request.timeout_s is None else time.monotonic() + request.timeout_s,
            stopped=self._stopped,
            abandoned=self._abandon,
        )
        self._open[request.request_id] = generation
        self._waiting.add(request.request_id)
        if self._takeover is None:
            self._serving.driver.add(request)
        else:
            self._orphan(generation)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.get_running_loop().create_task(self._hang_watch.run())
        if not self._settings.tuning:
            self._settings.tune_anew()
        return generation

    @property
    def optimization(self) -> OptimizationSettings:
        """The settings in force: as opened, and as changed since."""
        return self._settings.in_force

    async def reconfigure(self, changes: Mapping[str, Any]) -> OptimizationSettings:
        """Change batcher, cache or tuner while serving; returns the settings then in force.

        changes: shaped like the `optimization` section, holding only what changes. In force when this returns, from the
        next step on; no request is dropped: sequences above a lower limit run out. Raises SettingsError with every
        problem, EngineError when the engine does not come to it; then nothing is changed.
        """
        await self._settings.change(changes)
        return self._settings.in_force

    def counts(self) -> StackCounts:
        """Load at this moment."""
        waiting = len(self._waiting)
        return StackCounts(waiting, len(self._open) - waiting, self._serving.engine.slots)

    def healthy(self) -> bool:
        """False once no engine serves any more; True while there is another that may take over."""
        return self._may_take_over()

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, wait for those there are, cancel what is left after `timeout_s` seconds."""
        self._draining = True
        if not self._open:
            return
        if self._idle is None:  # a second drain waits for the same moment
            self._idle = asyncio.Event()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            for generation in list(self._open.values()):
                generation.give_up(RequestCancelled("the server is shutting down"))

    async def close(self) -> None:
        """Cancel what still runs, end the engine's thread and free the engine; a step that runs is waited for."""
        self._draining = self._closed = True
        self._settings.stop_tuning()
        if self._watch is not None:
            self._watch.cancel()
        if self._takeover is not None:
            await self._takeover  # its thread loads an engine, which cannot be interrupted
        await asyncio.gather(asyncio.to_thread(self._serving.driver.close), *self._closing)

    def refuse(self, error: Exception) -> None:
        """Show the observers a request that is refused, here or before it came here."""
        self._serving.driver.tell([Rejected(time.monotonic(), str(error))])

    def _check(self, request: GenerationRequest) -> None:
        if self._draining:
            raise Overloaded("the server is shutting down", retry_after_s=RETRY_AFTER_S, draining=True)
        engine = self._serving.engine
        if not self.healthy():
            raise EngineError(engine.info.name, self._serving.driver.failure or "its thread ended")
        if request.request_id in self._open:
            raise InvalidRequest(f"request id {request.request_id!r} is already in use", param="request_id")
        check_request(request, engine, vocabulary=engine.vocab_size or self.tokenizer.vocab_size)
        check_room(1, len(self._open), engine.slots, self._queue_capacity)

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Speak to `loop` from now on; what a loop before it left behind can no longer be waited for, and ends."""
        if self._loop is loop:
            return
        self._loop = loop
        self._watch = None
        self._settings.forget_loop()
        for request_id in list(self._open):
            self._abandon(request_id, RequestCancelled("the event loop that asked for it ended"))
        self._open.clear()
        self._waiting.clear()

    def _abandon(self, request_id: str, error: RequestError) -> None:
        if request_id in self._orphans:
            self._bury(request_id, error)
        else:
            self._serving.driver.fail(request_id, status=error.status, message=str(error))

    def _stopped(self, request_id: str) -> None:
        self._serving.driver.finish(request_id)

    def _open_serving(self) -> tuple[Serving, object]:
        """Load the next engine that serves; what its events will be known by. Blocks; raises EngineError."""
        source = object()
        deliver = partial(self._deliver, source)
        return open_serving(self._candidates, self._settings.in_force, deliver, self._watchers), source

    def _watchers(self, engine: EngineInfo) -> Sequence[Observer]:
        return [*self._observers(engine), self._settings.tap]

    def _deliver(self, source: object, events: Sequence[Event]) -> None:
        """Called on the engine's thread: pass the events to the event loop."""
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._take, source, events)
        except RuntimeError:
            # The loop was closed under us, and nobody is left to tell; the requests run to their end.
            log.debug("%d events were dropped: the event loop is closed", len(events))

    def _take(self, source: object, events: Sequence[Event]) -> None:
        if source in self._abandoned:
            return
        for event in events:
            match event:
                case Token(request_id=name, token=token):
                    if (generation := self._open.get(name)) is not None:
                        if event.index == 0:
                            generation.first_token(event.at)
                        generation.push(token)
                case Admitted(request_id=name):
                    self._waiting.discard(name)
                    if (generation := self._open.get(name)) is not None:
                        generation.admitted(event.queued_at, event.at)
                case CacheLookup(request_id=name, cached_tokens=cached):
                    if (generation := self._open.get(name)) is not None:
                        generation.cached_tokens = cached
                case Finished(request_id=name):
                    if (generation := self._close_one(name)) is not None:
                        generation.finish(event.reason)
                case Failed(request_id=name):
                    if (generation := self._close_one(name)) is not None:
                        kind = _FAILURES.get(event.status, RequestError)
                        generation.fail(kind(event.message))
                case Lost(request_id=name):
                    self._lose(name, event)
        self._take_over_if_dead()

    def _close_one(self, request_id: str) -> Generation | None:
        self._waiting.discard(request_id)
        generation = self._open.pop(request_id, None)
        if not self._open and self._idle is not None:
            self._idle.set()
        return generation

    # When an engine dies or hangs

    def _end_here(self, generation: Generation, error: RequestError) -> None:
        self._close_one(generation.request_id)
        generation.fail(error)

    def _give_up_engine(self, reason: str, overdue: Sequence[Failed]) -> None:
        driver, now = self._serving.driver, time.monotonic()
        suspects = driver.computing()
        driver.abandon(reason)
        self._abandoned.add(self._source_of_events)
        names = [name for name in self._open if name not in self._orphans]
        lost = [Lost(name, now, reason, now, suspect=name in suspects) for name in names]
        driver.tell([*overdue, *lost])
        for event in lost:
            self._lose(event.request_id, event)
        self._take_over_if_dead()

    def _lose(self, request_id: str, event: Lost) -> None:
        """Keep a request for the next engine if nothing of it was streamed, else end it.

        One that was computed when an engine died may be the reason, so it is run again once at most.
        """
        generation = self._open.get(request_id)
        if generation is None:
            return
        generation.deaths += event.suspect
        if not generation.can_restart:
            self._bury(request_id, RequestError(f"{event.message}, after part of the output was streamed"))
        elif generation.deaths >= _MOST_DEATHS:
            self._bury(request_id, RequestError(f"{event.message}; it is the second engine that failed under it"))
        elif not self._may_take_over():
            self._bury(request_id, RequestError(event.message))
        elif self._takeover is None and self._serving.driver.alive:
            # Word from the last engine that came after the next one took over.
            generation.restart()
            self._hand_over(generation)
        else:
            self._orphan(generation)

    def _orphan(self, generation: Generation) -> None:
        generation.restart()
        self._orphans[generation.request_id] = None
        self._waiting.add(generation.request_id)
        if generation.deadline is not None:
            delay = max(0.0, generation.deadline - time.monotonic())
            asyncio.get_running_loop().call_later(delay, self._expire_orphan, generation)

    def _hand_over(self, generation: Generation) -> None:
        """Queue a request again on the engine that serves now; its deadline stays where it was."""
        left_s = None if generation.deadline is None else max(0.001, generation.deadline - time.monotonic())
        request = replace(generation.request, timeout_s=left_s)
        self._serving.driver.add(request, suspect=generation.deaths > 0)

    def _expire_orphan(self, generation: Generation) -> None:
        if generation.request_id in self._orphans and self._open.get(generation.request_id) is generation:
            self._bury(generation.request_id, RequestTimeout("the request was not finished before its deadline"))

    def _bury(self, request_id: str, error: RequestError) -> None:
        """End a request that no engine has any more."""
        self._orphans.pop(request_id, None)
        generation = self._close_one(request_id)
        if generation is not None:
            generation.fail(error)
            now = time.monotonic()
            self._serving.driver.tell([Failed(request_id, now, error.status, str(error), now)])

    def _may_take_over(self) -> bool:
        return self._takeover is not None or self._serving.driver.alive or self._candidates.left

    def _take_over_if_dead(self) -> None:
        if self._takeover is None and not self._serving.driver.alive and self._candidates.left and not self._closed:
            self._takeover = asyncio.get_running_loop().create_task(self._take_over())

    async def _take_over(self) -> None:
        """Load the next engine and give it the orphans; without one they end with the reason."""
        dead = self._serving
        reason = dead.driver.failure or "its thread ended"
        log.warning("%s: %s; the next engine takes over", self._model, reason)
        try:
            self._candidates.skip(dead.engine.info.name, reason)
            self._serving, self._source_of_events = await asyncio.to_thread(self._open_serving)
        except Exception as error:  # no engine is left, or taking over failed itself: nothing may hang
            log.error("%s: %s", self._model, error, exc_info=not isinstance(error, EngineError))
            self._takeover = None
            for request_id in list(self._orphans):
                self._bury(request_id, RequestError(str(error)))
            return
        # From here on the new engine may die in its turn.
        self._takeover = None
        if not self._closed:
            self._settings.tune_anew(self._settings.good)
        for request_id in self._orphans:
            self._hand_over(self._open[request_id])
        self._orphans.clear()
        closing = asyncio.create_task(asyncio.to_thread(dead.driver.close))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
