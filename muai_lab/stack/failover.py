"""Failover: the engine that serves, and the next one of the preference when it dies or hangs.

Requests of which nothing was streamed run again on the next engine, the others end with an error. New requests wait
until the next engine is loaded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from muai_lab.engines.base import EngineInfo
from muai_lab.engines.selection import EngineCandidates
from muai_lab.errors import EngineError, RequestError, RequestTimeout
from muai_lab.stack.events import Event, Failed, Lost, Observer
from muai_lab.stack.generation import Generation
from muai_lab.stack.hang_watch import HangWatch
from muai_lab.stack.live_settings import LiveSettings
from muai_lab.stack.open_requests import OpenRequests
from muai_lab.stack.serving import MakeObservers, Serving, open_serving

log = logging.getLogger(__name__)

_MOST_DEATHS = 2  # of engines that computed a request, after which it is not run again


@dataclass(slots=True, eq=False)
class _Source:
    """One engine as a source of events. abandoned: its events are dropped."""

    abandoned: bool = False


class Failover:
    """One engine at a time, from several candidates. The constructor blocks; all else runs on one event loop.

    serving: the present engine and its driver. loop: the event loop that gets the events, None before the first
    request.

    `_displaced` holds the ids of the requests that wait for the next engine, in order.
    """

    def __init__(
        self,
        model: str,
        candidates: EngineCandidates,
        requests: OpenRequests,
        settings: LiveSettings,
        *,
        observers: MakeObservers,
    ) -> None:
        """Load the first candidate that can serve. Raises EngineError if there is none."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self._model = model
        self._candidates = candidates
        self._requests = requests
        self._settings = settings
        self._observers = observers
        self._displaced: dict[str, None] = {}
        self._takeover: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()  # of dead engines
        self._closed = False
        self._watch: asyncio.Task[None] | None = None
        self._hang_watch = HangWatch(
            requests.outputs,
            lambda: self.serving if self._takeover is None else None,
            limit_s=lambda: settings.in_force.step_timeout_s,
            end=self._end_overdue,
            abandon=self._abandon_engine,
        )
        self.serving, self._source = self._open_next()

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """The preferred engines that do not serve, each with the reason."""
        return tuple(self._candidates.skipped)

    @property
    def can_serve(self) -> bool:
        """True while an engine serves, or another one may take over."""
        return self._takeover is not None or self.serving.driver.alive or self._candidates.left

    def use_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver events to this event loop from now on."""
        self.loop = loop
        self._watch = None

    def take_over_if_dead(self) -> None:
        """Begin to load the next engine if the present one is dead and another is left."""
        if self._takeover is None and not self.serving.driver.alive and self._candidates.left and not self._closed:
            self._takeover = asyncio.get_running_loop().create_task(self._take_over())

    def add(self, generation: Generation) -> None:
        """Queue an open request on the present engine, or on the next one while that is loaded."""
        if self._takeover is None:
            self.serving.driver.add(generation.request)
        else:
            self._displace(generation)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.get_running_loop().create_task(self._hang_watch.run())

    def finish(self, request_id: str) -> None:
        """Have the engine end a request with success: its text met a stop string."""
        self.serving.driver.finish(request_id)

    def fail(self, request_id: str, error: RequestError) -> None:
        """End a request without a result, in the engine too."""
        if request_id in self._displaced:
            self._end(request_id, error)
        else:
            self.serving.driver.fail(request_id, status=error.status, message=str(error))

    async def close(self) -> None:
        """End the engine and its thread. A step that runs, and an engine that loads, are waited for."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
        if self._takeover is not None:
            await self._takeover  # its thread loads an engine, which cannot be interrupted
        await asyncio.gather(asyncio.to_thread(self.serving.driver.close), *self._closing)

    def _open_next(self) -> tuple[Serving, _Source]:
        """Load the next engine that serves. Blocks; raises EngineError."""
        source = _Source()
        deliver = partial(self._deliver, source)
        return open_serving(self._candidates, self._settings.in_force, deliver, self._watchers), source

    def _watchers(self, engine: EngineInfo) -> Sequence[Observer]:
        return [*self._observers(engine), self._settings.tap]

    def _deliver(self, source: _Source, events: Sequence[Event]) -> None:
        """Pass the events to the event loop. Called on the engine's thread."""
        if self.loop is None:
            return
        try:
            self.loop.call_soon_threadsafe(self._take, source, events)
        except RuntimeError:
            # The loop was closed meanwhile and no consumer is left; the requests run to their end.
            log.debug("%d events were dropped: the event loop is closed", len(events))

    def _take(self, source: _Source, events: Sequence[Event]) -> None:
        if source.abandoned:
            return
        for lost in self._requests.take(events):
            self._lose(lost)
        self.take_over_if_dead()

    def _abandon_engine(self, reason: str, overdue: Sequence[Failed]) -> None:
        driver, now = self.serving.driver, time.monotonic()
        suspects = driver.computing()
        driver.abandon(reason)
        self._source.abandoned = True
        names = [name for name in self._requests.outputs if name not in self._displaced]
        lost = [Lost(name, now, reason, now, suspect=name in suspects) for name in names]
        driver.show([*overdue, *lost])
        for event in lost:
            self._lose(event)
        self.take_over_if_dead()

    def _lose(self, event: Lost) -> None:
        """Keep a request for the next engine if nothing of it was streamed, else end it.

        A request that was computed when an engine died may be the cause, so it runs again at most once.
        """
        name = event.request_id
        generation = self._requests.outputs.get(name)
        if generation is None:
            return
        generation.deaths += event.suspect
        if not generation.can_restart:
            self._end(name, RequestError(f"{event.message}, after part of the output was streamed"))
        elif generation.deaths >= _MOST_DEATHS:
            self._end(name, RequestError(f"{event.message}; it is the second engine that failed under it"))
        elif not self.can_serve:
            self._end(name, RequestError(event.message))
        elif self._takeover is None and self.serving.driver.alive:
            # The event of a dead engine, come after the next one took over.
            generation.restart()
            self._hand_over(generation)
        else:
            self._displace(generation)

    def _displace(self, generation: Generation) -> None:
        """Keep a request for the next engine, until its deadline."""
        generation.restart()
        self._displaced[generation.request_id] = None
        self._requests.waiting.add(generation.request_id)
        if generation.deadline is not None:
            delay = max(0.0, generation.deadline - time.monotonic())
            asyncio.get_running_loop().call_later(delay, self._expire, generation)

    def _hand_over(self, generation: Generation) -> None:
        """Queue a request again on the present engine. Its deadline stays the same."""
        left_s = None if generation.deadline is None else max(0.001, generation.deadline - time.monotonic())
        request = replace(generation.request, timeout_s=left_s)
        self.serving.driver.add(request, suspect=generation.deaths > 0)

    def _expire(self, generation: Generation) -> None:
        name = generation.request_id
        if name in self._displaced and self._requests.outputs.get(name) is generation:
            self._end(name, RequestTimeout("the request was not finished before its deadline"))

    def _end_overdue(self, generation: Generation, error: RequestError) -> None:
        """End a request here only: the engine hangs."""
        self._requests.remove(generation.request_id)
        generation.fail(error)

    def _end(self, request_id: str, error: RequestError) -> None:
        """End a request that no engine holds any more."""
        self._displaced.pop(request_id, None)
        generation = self._requests.remove(request_id)
        if generation is not None:
            generation.fail(error)
            now = time.monotonic()
            self.serving.driver.show([Failed(request_id, now, error.status, str(error), now)])

    async def _take_over(self) -> None:
        """Load the next engine and give it the displaced requests. If none loads, they end with the reason."""
        dead = self.serving
        reason = dead.driver.failure or "its thread ended"
        log.warning("%s: %s; the next engine takes over", self._model, reason)
        try:
            self._candidates.skip(dead.engine.info.name, reason)
            self.serving, self._source = await asyncio.to_thread(self._open_next)
        except Exception as error:  # no engine is left, or the takeover itself failed: no request may hang
            log.error("%s: %s", self._model, error, exc_info=not isinstance(error, EngineError))
            self._takeover = None
            for request_id in list(self._displaced):
                self._end(request_id, RequestError(str(error)))
            return
        # From here on the new engine may die in its turn.
        self._takeover = None
        if not self._closed:
            self._settings.tune_anew(self._settings.good)
        for request_id in self._displaced:
            self._hand_over(self._requests.outputs[request_id])
        self._displaced.clear()
        closing = asyncio.create_task(asyncio.to_thread(dead.driver.close))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
