"""The driver of engines that schedule their own steps: a thread with an event loop, in which the batcher only admits.

The thread owns batcher and engine; commands reach them through its loop. The engine's steps are not visible: all
tokens that it reports within one turn of the loop count as one step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from muai_lab.engines.base import EngineInfo, StreamedTokens, StreamingEngine
from muai_lab.errors import EngineError, RequestError
from muai_lab.stack.change import Change, PendingChange
from muai_lab.stack.driver import CLOSED, Deliver, EngineDriver
from muai_lab.stack.events import Event, Failed, Observer, Step
from muai_lab.stack.observers import ObserverList
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.stream_batcher import StreamBatcher

log = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 0.5
_NO_LOOP = "the engine's loop is not running"


class StreamingDriver(EngineDriver):
    """The thread of one streaming engine, with its event loop; see `EngineDriver`."""

    def __init__(
        self,
        engine: StreamingEngine,
        batcher: StreamBatcher,
        deliver: Deliver,
        *,
        observers: Callable[[EngineInfo], Sequence[Observer]] = lambda _info: (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the thread and load the model in it. Blocks until it is loaded; raises what `engine.start` raises.

        observers: called once the engine is loaded.
        """
        self._engine = engine
        self._batcher = batcher
        self._make_observers = observers
        self._observers = ObserverList()
        self._deliver = deliver
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._flushed_at = clock()
        self._in_flush: dict[str, int] = {}  # tokens that each request got since the last flush
        self._prompt_tokens = 0  # of the requests whose first token came since the last flush
        self._closed: asyncio.Event  # made on the loop
        self.failure: str | None = None
        started: Future[None] = Future()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(started,), name="streaming-engine", daemon=True)
        self._thread.start()
        started.result()

    @property
    def alive(self) -> bool:
        """See `EngineDriver.alive`."""
        return self._thread.is_alive() and self.failure is None

    def add(self, request: GenerationRequest, *, suspect: bool = False) -> None:
        """See `EngineDriver.add`."""
        self._call(self._add, request, suspect)

    def finish(self, request_id: str) -> None:
        """See `EngineDriver.finish`."""
        self._call(self._finish, request_id)

    def fail(self, request_id: str, *, status: str, message: str) -> None:
        """See `EngineDriver.fail`. Also aborts the request in the engine."""
        self._call(self._fail_one, request_id, status, message)

    def show(self, events: Sequence[Event]) -> None:
        """See `EngineDriver.show`."""
        self._call(self._observers.show, events)

    def apply(self, change: Change) -> Future[None]:
        """See `EngineDriver.apply`."""
        pending = PendingChange(change)
        self._call(self._make, pending)
        return pending.done

    def stalled_s(self) -> float:
        """Always 0: the engine's `check` detects that it hangs."""
        return 0.0

    def computing(self) -> frozenset[str]:
        """Always empty; see `stalled_s`."""
        return frozenset()

    def abandon(self, reason: str) -> None:
        """See `EngineDriver.abandon`. The engine ends at `close`."""
        self._call(lambda: self._die(EngineError(self._engine.info.name, reason)))

    def close(self) -> None:
        """See `EngineDriver.close`."""
        self._call(self._begin_close)
        self._thread.join()

    def _call(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(work, *arguments)
        except RuntimeError:  # closed: the open requests ended with it
            log.debug(_NO_LOOP)

    def _run(self, started: Future[None]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main(started))
        finally:
            self._loop.close()

    async def _main(self, started: Future[None]) -> None:
        self._closed = asyncio.Event()
        try:
            await self._engine.start()
            self._observers = ObserverList(self._make_observers(self._engine.info))
        except BaseException as error:  # noqa: BLE001 - the caller waits in another thread and gets it there
            await self._close_engine()
            started.set_exception(error)
            return
        started.set_result(None)
        watch = asyncio.create_task(self._watch())
        await self._closed.wait()
        watch.cancel()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(watch, *self._tasks.values(), return_exceptions=True)
        self._flush()
        await self._close_engine()

    async def _close_engine(self) -> None:
        try:
            await self._engine.close()
        except Exception:  # the thread ends here: no caller could get the error
            log.exception("a streaming engine failed while it was closed")

    async def _watch(self) -> None:
        """Check at intervals if the engine lives; its streams may hang when it does not."""
        while self.failure is None:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            try:
                await self._engine.check()
            except EngineError as error:
                self._die(error)
            except Exception as error:  # noqa: BLE001 - an engine whose check fails counts as dead
                self._die(EngineError(self._engine.info.name, f"its check failed: {type(error).__name__}: {error}"))

    def _add(self, request: GenerationRequest, suspect: bool) -> None:
        now = self._clock()
        self._batcher.add(request, now, suspect=suspect)
        if self._closed.is_set():
            self._batcher.fail(request.request_id, now, status="cancelled", message=CLOSED)
        elif self.failure is not None:
            self._batcher.lose(request.request_id, now, message=self.failure)
        self._admit()

    def _make(self, pending: PendingChange) -> None:
        pending.make(self._batcher, self._clock())
        self._admit()

    def _finish(self, request_id: str) -> None:
        self._batcher.finish(request_id, self._clock())
        self._abort(request_id)
        self._admit()

    def _fail_one(self, request_id: str, status: str, message: str) -> None:
        self._batcher.fail(request_id, self._clock(), status=status, message=message)
        self._abort(request_id)
        self._admit()

    def _begin_close(self) -> None:
        self._batcher.fail_all(self._clock(), status="cancelled", message=CLOSED)
        self._flush()
        self._closed.set()

    def _admit(self) -> None:
        """Start the requests that may run now, and look again when a hold or a deadline ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.failure is None and not self._closed.is_set():
            plan = self._batcher.admit(self._clock())
            for chunk in plan.prefill:
                request = self._batcher.request_in(chunk.slot)
                self._tasks[request.request_id] = self._loop.create_task(self._stream(request))
            if plan.wait_until is not None:
                delay = max(0.0, plan.wait_until - self._clock())
                self._timer = self._loop.call_later(delay, self._wake)
        self._flush_soon()

    def _wake(self) -> None:
        self._timer = None
        self._admit()

    async def _stream(self, request: GenerationRequest) -> None:
        name = request.request_id
        stream = self._engine.generate(
            name,
            request.prompt,
            request.sampling,
            max_tokens=request.max_tokens,
            ignore_eos=request.ignore_eos,
            cache_salt=request.cache_salt,
        )
        try:
            async for report in stream:
                self._take(request, report)
                if report.finish_reason is not None:
                    break
            else:
                raise EngineError(self._engine.info.name, "a stream ended without a finish reason")
        except EngineError as error:
            self._die(error)
        except RequestError as error:
            self._batcher.fail(name, self._clock(), status=error.status, message=str(error))
        except Exception as error:  # noqa: BLE001 - a request must end, whatever the engine does
            message = f"engine {self._engine.info.name}: {type(error).__name__}: {error}"
            self._batcher.fail(name, self._clock(), status="error", message=message)
        finally:
            await stream.aclose()  # type: ignore[attr-defined] # an async generator; aborts what still runs
            self._tasks.pop(name, None)
            if not self._closed.is_set():
                self._admit()

    def _take(self, request: GenerationRequest, report: StreamedTokens) -> None:
        at = report.at if report.at is not None else self._clock()
        name = request.request_id
        if report.tokens and self._batcher.output_tokens(name) == 0:
            self._prompt_tokens += len(request.prompt)
            if report.cached_tokens is not None:
                self._batcher.note_cached(name, report.cached_tokens, at)
        self._in_flush[name] = self._in_flush.get(name, 0) + len(report.tokens)
        self._batcher.take(name, report.tokens, at)
        if report.finish_reason is not None:
            self._batcher.finish(name, at, reason=report.finish_reason)
        if self._batcher.on_trial:
            self._admit()  # the next suspect, perhaps
        self._flush_soon()

    def _abort(self, request_id: str) -> None:
        """Abort a request in the engine that has ended here."""
        task = self._tasks.get(request_id)
        if task is not None and task is not asyncio.current_task(self._loop):
            task.cancel()

    def _die(self, error: EngineError) -> None:
        if self.failure is not None or self._closed.is_set():
            return
        log.error("%s", error)
        self.failure = str(error)
        self._batcher.lose_all(self._clock(), message=self.failure)
        for request_id in list(self._tasks):
            self._abort(request_id)
        self._flush()
        self._deliver([])  # reports the failure even if no request was in flight

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        events = self._batcher.take_events()
        for event in events:
            if isinstance(event, Failed):  # its deadline passed, for example
                self._abort(event.request_id)
        if self._in_flush:
            now = self._clock()
            events.append(
                Step(
                    at=now,
                    began=self._flushed_at,
                    batch=len(self._in_flush),
                    prefill_tokens=self._prompt_tokens,
                    decode_tokens=sum(self._in_flush.values()),
                    running=self._batcher.running,
                    waiting=self._batcher.waiting,
                    limit=self._batcher.running_limit,
                )
            )
            self._batcher.end_turn(sum(self._in_flush.values()), began=self._flushed_at, now=now)
            self._flushed_at = now
            self._in_flush.clear()
            self._prompt_tokens = 0
        if events:
            self._observers.show(events)
            self._deliver(events)
