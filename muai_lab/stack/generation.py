"""The output of one request, as its consumer on the event loop sees it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from muai_lab.errors import RequestCancelled, RequestError
from muai_lab.stack.request import Delta, GenerationRequest
from muai_lab.stack.suspects import PROOF_TOKENS
from muai_lab.stack.text import OutputText

log = logging.getLogger(__name__)


class Generation:
    """The output of one request: an async iterator of `Delta`, the last of which has a finish reason.

    Iterating raises a RequestError if the request ends without a result. If the consumer lags, deltas merge. A request
    that does not stream has one delta, at the end.

    The stack feeds it: `push`, `finish`, `fail`, `abort`, `restart`. text: makes the text of one attempt. deadline:
    monotonic seconds, None for never. stopped: called when the text met a stop string. aborted: called when the request
    is aborted before its end. deaths: engines that died while they computed it.
    """

    def __init__(
        self,
        request: GenerationRequest,
        text: Callable[[], OutputText],
        *,
        deadline: float | None,
        stopped: Callable[[str], None],
        aborted: Callable[[str, RequestError], None],
    ) -> None:
        self.request_id = request.request_id
        self.request = request
        self.deadline = deadline
        self.deaths = 0
        self._hold_back = 0  # first tokens of the output that are held back until more follow
        self.cached_tokens: int | None = None
        self.queue_s: float | None = None  # from queued to admitted, known once admitted
        self.admitted_at: float | None = None
        self.prefill_s: float | None = None  # from admitted to the first token, known once there is one
        self._stopped = stopped
        self._aborted = aborted
        self._make_text = text
        self._text = text()
        self._pieces: list[str] = []
        self._ids: list[int] | None = [] if request.keep_ids else None
        self._new_tokens = 0
        self._output_tokens = 0
        self._finish_reason: str | None = None
        self._error: RequestError | None = None
        self._over = False  # the consumer has got the last delta, or the error
        self._wakeup: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """True once nothing more will be produced (the consumer may still have deltas to read)."""
        return self._over or self._finish_reason is not None or self._error is not None

    @property
    def token_ids(self) -> list[int] | None:
        """Ids of the tokens so far, an end token included; None unless the request keeps them."""
        return self._ids

    @property
    def can_restart(self) -> bool:
        """True while no output can have reached the consumer, so that another engine may start over."""
        return not self.ended and (self._output_tokens <= self._hold_back or not self.request.stream)

    def restart(self) -> None:
        """Drop the output so far: another engine starts over.

        If an engine has died under the request, the tokens of its test (see `Suspects`) are held back until more
        follow. Until then the next engine may die too, because of another request, and this one can start over again.
        """
        self._text = self._make_text()
        self._pieces.clear()
        self._ids = [] if self.request.keep_ids else None
        self._new_tokens = self._output_tokens = 0
        self._hold_back = PROOF_TOKENS if self.deaths else 0
        self.cached_tokens = None
        self.queue_s = self.admitted_at = self.prefill_s = None

    def cancel(self) -> None:
        """Abort the request: its slot is free before the next step. An ended request is left alone."""
        if not self.ended:
            self.abort(RequestCancelled(f"request {self.request_id} was cancelled"))

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Delta:
        if self._over:
            raise StopAsyncIteration
        while not (self.ended or (self._output_tokens > self._hold_back and self._new_tokens and self.request.stream)):
            self._wakeup = asyncio.get_running_loop().create_future()
            await self._wakeup
        if self._error is not None:
            raise self._take_error()
        self._over = self._finish_reason is not None
        text = self._pieces[0] if len(self._pieces) == 1 else "".join(self._pieces)
        delta = Delta(text, self._new_tokens, self._output_tokens, self._finish_reason, self.cached_tokens)
        self._pieces.clear()
        self._new_tokens = 0
        return delta

    def _take_error(self) -> RequestError:
        """Return the error and drop it: its traceback holds the frames that hold this object."""
        assert self._error is not None, "the request has failed"
        error, self._error, self._over = self._error, None, True
        return error

    def admitted(self, queued_at: float, at: float) -> None:
        """Record when the request got its slot; monotonic seconds."""
        self.queue_s, self.admitted_at = at - queued_at, at

    def first_token(self, at: float) -> None:
        """Record when the first token was produced; monotonic seconds."""
        if self.admitted_at is not None:
            self.prefill_s = at - self.admitted_at

    def push(self, token: int) -> None:
        """Take in one token; ignored once ended."""
        if self.ended:
            return
        self._new_tokens += 1
        self._output_tokens += 1
        if self._ids is not None:
            self._ids.append(token)
        try:
            text = self._text.push(token)
        except Exception as error:  # a fault of the tokenizer ends this request only
            log.exception("request %s: its output cannot be decoded", self.request_id)
            self.abort(RequestError(f"token {token} cannot be decoded: {error}"))
            return
        if text:
            self._pieces.append(text)
        if self._text.stopped:
            self._finish_reason = "stop"
            self._stopped(self.request_id)
        if self.request.stream or self.ended:
            self._wake()

    def finish(self, reason: str) -> None:
        """End with a result, unless ended already."""
        if self.ended:
            return
        try:
            rest = self._text.end()
        except Exception as error:  # as above
            log.exception("request %s: its output cannot be decoded", self.request_id)
            self.fail(RequestError(f"the output's end cannot be decoded: {error}"))
            return
        if rest:
            self._pieces.append(rest)
        self._finish_reason = "stop" if self._text.stopped else reason
        self._wake()

    def abort(self, error: RequestError) -> None:
        """End with `error`, and have the engine end the sequence."""
        self.fail(error)
        self._aborted(self.request_id, error)

    def fail(self, error: RequestError) -> None:
        """End with an error, unless ended already."""
        if not self.ended:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)
