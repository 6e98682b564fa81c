"""A target without sockets: the inference stack in the process of the generator."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from muai_lab.engines.base import Sampling
from muai_lab.errors import EngineError, InvalidRequest, RequestError
from muai_lab.request_record import RequestRecord
from muai_lab.settings.lab import LabSettings
from muai_lab.stack.request import GenerationRequest
from muai_lab.workload.prompts import plain
from muai_lab.workload.schedule import Schedule, ScheduledRequest

if TYPE_CHECKING:  # the stack brings torch, which only its opener needs
    from muai_lab.stack.stack import InferenceStack
from muai_lab.stack.text import StopStrings

_PASSED_ON = frozenset({"temperature", "top_p", "top_k", "seed", "stop", "ignore_eos"})


class InProcessTarget:
    """Sends to an open stack on the same event loop; the stack's owner opens and closes it.

    The prompt is tokenised inside `send`, after `sent` is stamped: as with a server, the client waits for it.

    Args:
        stack: The open stack.
        chat: Prompts are messages of a user instead of plain text.
        temperature: Of requests without one of their own.
        ignore_eos: Of requests without one of their own.
        clock: Monotonic nanoseconds.
    """

    def __init__(
        self,
        stack: InferenceStack,
        *,
        chat: bool = False,
        temperature: float = 0.0,
        ignore_eos: bool = True,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._stack = stack
        self._chat = chat
        self._temperature = temperature
        self._ignore_eos = ignore_eos
        self._clock = clock
        self._not_sent: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: LabSettings, stack: InferenceStack) -> InProcessTarget:
        """Return the target of the settings over an open stack."""
        workload = settings.workload
        return cls(stack, chat=workload.api == "chat", temperature=workload.temperature, ignore_eos=workload.ignore_eos)

    @property
    def notes(self) -> tuple[str, ...]:
        """The lack of a network, and the fields of the requests that this target does not pass on."""
        return ("target=inprocess: no sockets, and the stack shares the load generator's event loop", *self._not_sent)

    async def open(self, schedule: Schedule) -> None:
        """Look for fields that only a server accepts; the stack itself is open."""
        counts = Counter(key for text in schedule.table["extra"].drop_null() for key in json.loads(text.as_py()))
        left_out = [f"{key} ({count:,})" for key, count in sorted(counts.items()) if key not in _PASSED_ON]
        if left_out:
            self._not_sent = (f"target=inprocess does not pass on these fields of requests: {', '.join(left_out)}",)

    async def send(self, request: ScheduledRequest, record: RequestRecord) -> None:
        """Submit one request and read its deltas; frees its slot if cancelled."""
        record.sent_ns = self._clock()
        generation = None
        unseen = 0  # tokens whose text is not complete yet: the next text carries them
        try:
            asked = self._request(request)
            generation = self._stack.submit(asked)
            async for delta in generation:
                unseen += delta.tokens
                if delta.text:
                    record.chunk_t_ns.append(self._clock())
                    record.chunk_tokens.append(unseen)
                    unseen = 0
                    if record.answer is not None:
                        record.answer.append(delta.text)
                record.output_tokens = delta.output_tokens
                record.cached_prompt_tokens = delta.cached_tokens
                record.finish_reason = delta.finish_reason
        except (InvalidRequest, EngineError) as error:
            # An invalid request is a fault of the schedule, not refused load; over HTTP it is a 400.
            record.end("error", self._clock(), str(error))
        except RequestError as error:
            record.end(error.status, self._clock(), str(error))
        else:
            record.prompt_tokens = len(asked.prompt)
            if generation.queue_s is not None and generation.prefill_s is not None:
                record.server_queue_ns = round(generation.queue_s * 1e9)
                record.server_prefill_ns = round(generation.prefill_s * 1e9)
            record.end("ok", self._clock())
        finally:
            if generation is not None:
                generation.cancel()

    async def close(self) -> None:
        """Do nothing: the stack's owner closes it."""

    def _request(self, request: ScheduledRequest) -> GenerationRequest:
        tokenizer = self._stack.tokenizer
        if request.prompt_ids is not None:
            prompt = request.prompt_ids.tolist()
        elif self._chat:
            prompt = tokenizer.encode_chat([plain(message) for message in request.conversation()])
        else:
            prompt = tokenizer.encode(request.text())
        extra: dict[str, Any] = {} if request.extra is None else json.loads(request.extra)
        return GenerationRequest(
            request_id=f"load-{request.index}",
            prompt=prompt,
            max_tokens=request.max_tokens,
            sampling=self._sampling(extra, request.seed),
            stop=StopStrings(_stop_strings(extra.get("stop"))),
            ignore_eos=bool(extra.get("ignore_eos", self._ignore_eos)),
        )

    def _sampling(self, extra: dict[str, Any], seed: int | None) -> Sampling:
        try:
            temperature = float(extra.get("temperature", self._temperature))
            seed = extra.get("seed", seed)
            return Sampling(
                temperature=temperature,
                top_p=float(extra.get("top_p", 1.0)),
                top_k=int(extra.get("top_k", 0)),
                seed=int(seed) if seed is not None and temperature > 0 else None,
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(f"a sampling field of the request is no number: {error}") from error


def _stop_strings(stop: Any) -> tuple[str, ...]:
    if stop is None or stop == "":
        return ()
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(string, str) and string for string in strings):
        raise InvalidRequest("stop is neither a text nor a list of texts", param="stop")
    return tuple(strings)
