"""The inference stack: one model on one engine behind the scheduler, spoken to from an asyncio event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muai_lab.engines.base import EngineInfo, Sampling, StepEngine
from muai_lab.engines.selection import open_engine
from muai_lab.errors import EngineError, InvalidRequest, Overloaded, RequestCancelled, RequestError, RequestTimeout
from muai_lab.models.registry import ModelSource, resolve_model
from muai_lab.models.tokenizer import ModelTokenizer, load_tokenizer
from muai_lab.stack.driver import StepDriver
from muai_lab.stack.events import Admitted, Event, Failed, Finished, Observer, Rejected, Token
from muai_lab.stack.request import Delta, GenerationRequest
from muai_lab.stack.scheduler import BatchLimits, Scheduler
from muai_lab.stack.text import OutputText

if TYPE_CHECKING:
    from muai_lab.settings.schema import OptimizationSettings

log = logging.getLogger(__name__)

# What a rejected client is asked to wait. A constant, since the queue's own pace is not known before it moves.
RETRY_AFTER_S = 1.0

_FAILURES: dict[str, type[RequestError]] = {"cancelled": RequestCancelled, "timeout": RequestTimeout}


@dataclass(frozen=True, slots=True)
class StackInfo:
    """What serves: recorded with every result. skipped: engines that were preferred, and why they do not serve."""

    model: str
    source: ModelSource
    engine: EngineInfo
    skipped: tuple[tuple[str, str], ...]
    queue_capacity: int | None


@dataclass(frozen=True, slots=True)
class StackCounts:
    """Requests waiting for admission, sequences running, and slots there are."""

    waiting: int
    running: int
    slots: int


class Generation:
    """The output of one request: an async iterator of `Delta`, the last of which has a finish reason.

    Iterating raises a RequestError where the request ends without a result. If the consumer lags, deltas merge.
    """

    def __init__(self, stack: InferenceStack, request: GenerationRequest, text: OutputText) -> None:
        self.request_id = request.request_id
        self.cached_tokens: int | None = None
        self._stack = stack
        self._text = text
        self._pieces: list[str] = []
        self._new_tokens = 0
        self._output_tokens = 0
        self._finish_reason: str | None = None
        self._error: RequestError | None = None
        self._over = False  # the last delta, or the error, was handed out
        self._wakeup: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """True once nothing more will be produced (the consumer may still have deltas to read)."""
        return self._finish_reason is not None or self._error is not None

    def cancel(self) -> None:
        """Give the request up: its slot is free before the next step. Ended requests are left alone."""
        if not self.ended:
            self._give_up(RequestCancelled(f"request {self.request_id} was cancelled"))

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Delta:
        if self._over:
            raise StopAsyncIteration
        while not self._new_tokens and not self.ended:
            self._wakeup = asyncio.get_running_loop().create_future()
            await self._wakeup
        if self._error is not None:
            self._over = True
            raise self._error
        self._over = self._finish_reason is not None
        text = self._pieces[0] if len(self._pieces) == 1 else "".join(self._pieces)
        delta = Delta(text, self._new_tokens, self._output_tokens, self._finish_reason, self.cached_tokens)
        self._pieces.clear()
        self._new_tokens = 0
        return delta

    def _push(self, token: int) -> None:
        if self.ended:
            return
        self._new_tokens += 1
        self._output_tokens += 1
        try:
            text = self._text.push(token)
        except Exception as error:  # a tokenizer's fault ends this request, and no other
            log.exception("request %s: its output cannot be decoded", self.request_id)
            self._give_up(RequestError(f"token {token} cannot be decoded: {error}"))
            return
        if text:
            self._pieces.append(text)
        if self._text.stopped:
            self._finish_reason = "stop"
            self._stack._stopped(self.request_id)
        self._wake()

    def _finish(self, reason: str) -> None:
        if self.ended:
            return
        try:
            rest = self._text.end()
        except Exception as error:  # as above
            log.exception("request %s: its output cannot be decoded", self.request_id)
            self._fail(RequestError(f"the output's end cannot be decoded: {error}"))
            return
        if rest:
            self._pieces.append(rest)
        self._finish_reason = "stop" if self._text.stopped else reason
        self._wake()

    def _give_up(self, error: RequestError) -> None:
        """End with `error`, and have the sequence ended too."""
        self._fail(error)
        self._stack._abandon(self.request_id, error)

    def _fail(self, error: RequestError) -> None:
        if not self.ended:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


class InferenceStack:
    """One model served by one engine. `open` blocks; everything else runs on one event loop.

    `_open` holds the requests whose last event has not come yet, `_waiting` the ids of those without a slot.
    """

    def __init__(
        self,
        info: StackInfo,
        tokenizer: ModelTokenizer,
        engine: StepEngine,
        limits: BatchLimits,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.info = info
        self.tokenizer = tokenizer
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: dict[str, Generation] = {}
        self._waiting: set[str] = set()
        self._draining = False
        self._idle: asyncio.Event | None = None
        scheduler = Scheduler(limits, slots=engine.slots, eos_token_ids=engine.eos_token_ids)
        self._driver = StepDriver(engine, scheduler, self._deliver, observers=observers)

    @classmethod
    def open(
        cls,
        optimization: OptimizationSettings,
        model: str,
        *,
        checkpoint: str | None = None,
        queue_capacity: int | None = None,
        observers: Sequence[Observer] = (),
    ) -> InferenceStack:
        """Load the model on the first engine that can serve it; blocks for seconds.

        checkpoint: hub id or local directory, None for `optimization.models` or the embedded model of that name.
        queue_capacity: most requests that may wait, None for no bound.
        Raises ModelError or EngineError.
        """
        source = resolve_model(model, checkpoint or optimization.models.get(model))
        tokenizer = load_tokenizer(source)
        batching = optimization.enabled and optimization.batcher.enabled
        slots = optimization.batcher.max_batch_size if batching else 1
        engine, skipped = open_engine(optimization, source, slots=slots)
        limits = BatchLimits(
            max_batch_size=slots,
            min_batch_size=optimization.batcher.min_batch_size if batching else 1,
            timeout_s=optimization.batcher.batch_timeout_ms / 1000,
        )
        info = StackInfo(model, source, engine.info, skipped, queue_capacity)
        return cls(info, tokenizer, engine, limits, observers)

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request. Raises InvalidRequest for one that can never be served, Overloaded for one too many."""
        try:
            self._check(request)
        except (InvalidRequest, Overloaded, EngineError) as error:
            self._driver.tell([Rejected(time.monotonic(), str(error))])
            raise
        self._enter(asyncio.get_running_loop())
        generation = Generation(self, request, OutputText(self.tokenizer.stream(), request.stop))
        self._open[request.request_id] = generation
        self._waiting.add(request.request_id)
        self._driver.add(request)
        return generation

    def counts(self) -> StackCounts:
        """Load at this moment."""
        waiting = len(self._waiting)
        return StackCounts(waiting, len(self._open) - waiting, self._engine.slots)

    def healthy(self) -> bool:
        """False once the engine has failed or its thread is gone."""
        return self._driver.alive

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
                generation._give_up(RequestCancelled("the server is shutting down"))

    async def close(self) -> None:
        """Cancel what still runs, end the engine's thread and free the engine; a step that runs is waited for."""
        self._draining = True
        await asyncio.to_thread(self._driver.close)

    def _check(self, request: GenerationRequest) -> None:
        if self._draining:
            raise Overloaded("the server is shutting down", retry_after_s=RETRY_AFTER_S, draining=True)
        if not self.healthy():
            raise EngineError(self.info.engine.name, self._driver.failure or "its thread ended")
        if request.request_id in self._open:
            raise InvalidRequest(f"request id {request.request_id!r} is already in use", param="request_id")
        self._check_prompt(request.prompt)
        _check_sampling(request.sampling)
        if request.timeout_s is not None and not request.timeout_s > 0:
            raise InvalidRequest(f"timeout_s must be more than 0, not {request.timeout_s}", param="timeout_s")
        if request.max_tokens < 1:
            raise InvalidRequest(f"max_tokens must be at least 1, not {request.max_tokens}", param="max_tokens")
        self._check_length(len(request.prompt), request.max_tokens)
        # Not `_waiting`: right after a burst, requests wait only for the engine's thread to look into its inbox.
        capacity = self.info.queue_capacity
        if capacity is not None and len(self._open) - self._engine.slots >= capacity:
            raise Overloaded(f"the queue is full ({capacity} requests wait)", retry_after_s=RETRY_AFTER_S)

    def _check_prompt(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise InvalidRequest("the prompt is empty", param="prompt")
        vocabulary = self._engine.vocab_size or self.tokenizer.vocab_size
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise InvalidRequest(f"prompt token ids must lie in 0..{vocabulary - 1}", param="prompt")

    def _check_length(self, prompt_tokens: int, max_tokens: int) -> None:
        limit = self._engine.info.max_model_len
        if prompt_tokens > self._engine.prompt_limit():
            raise InvalidRequest(
                f"the prompt has {prompt_tokens} tokens, and the model's context is {limit} tokens",
                param="prompt",
                code="context_length_exceeded",
            )
        if max_tokens > self._engine.output_limit(prompt_tokens):
            raise InvalidRequest(
                f"the model's context is {limit} tokens, but {prompt_tokens} in the prompt and {max_tokens} of output"
                " were asked for: shorten the prompt or lower max_tokens",
                param="max_tokens",
                code="context_length_exceeded",
            )

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Speak to `loop` from now on; what a loop before it left behind can no longer be waited for, and ends."""
        if self._loop is loop:
            return
        self._loop = loop
        for request_id in self._open:
            self._abandon(request_id, RequestCancelled("the event loop that asked for it ended"))
        self._open.clear()
        self._waiting.clear()

    def _abandon(self, request_id: str, error: RequestError) -> None:
        self._driver.fail(request_id, status=error.status, message=str(error))

    def _stopped(self, request_id: str) -> None:
        self._driver.finish(request_id)

    def _deliver(self, events: Sequence[Event]) -> None:
        """Called on the engine's thread: pass the events to the event loop."""
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._take, events)
        except RuntimeError:
            # The loop was closed under us, and nobody is left to tell; the requests run to their end.
            log.debug("%d events were dropped: the event loop is closed", len(events))

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case Token(request_id=name, token=token):
                    if (generation := self._open.get(name)) is not None:
                        generation._push(token)
                case Admitted(request_id=name):
                    self._waiting.discard(name)
                    if (generation := self._open.get(name)) is not None:
                        generation.cached_tokens = event.cached_tokens
                case Finished(request_id=name):
                    if (generation := self._close_one(name)) is not None:
                        generation._finish(event.reason)
                case Failed(request_id=name):
                    if (generation := self._close_one(name)) is not None:
                        kind = _FAILURES.get(event.status, RequestError)
                        generation._fail(kind(event.message))

    def _close_one(self, request_id: str) -> Generation | None:
        self._waiting.discard(request_id)
        generation = self._open.pop(request_id, None)
        if not self._open and self._idle is not None:
            self._idle.set()
        return generation


def _check_sampling(sampling: Sampling) -> None:
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise InvalidRequest(f"temperature must be 0 or more, not {sampling.temperature}", param="temperature")
    if not 0 < sampling.top_p <= 1:
        raise InvalidRequest(f"top_p must be above 0 and at most 1, not {sampling.top_p}", param="top_p")
    if sampling.top_k < 0:
        raise InvalidRequest(f"top_k must be 0 (all tokens) or more, not {sampling.top_k}", param="top_k")
