"""The two endpoints that generate: from the bytes of a request to its answer, streamed or whole."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from muai_lab.errors import InvalidRequest, MuaiError, RequestError
from muai_lab.server.exchange import Disconnect, check_json, json_response
from muai_lab.server.frames import (
    DONE,
    AnswerFormat,
    AnswerIdentity,
    Frames,
    Result,
    Usage,
    error_event,
    usage_document,
    usage_event,
    whole,
)
from muai_lab.server.host import ModelHost
from muai_lab.server.http_error import http_error_of, internal_error
from muai_lab.server.protocol import AnyRequest, GenerationFields
from muai_lab.server.reading import RequestReader
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.text import StopStrings

if TYPE_CHECKING:
    from muai_lab.stack.generation import Generation
    from muai_lab.stack.stack import InferenceStack

log = logging.getLogger(__name__)

TOKENS_PER_TURN = 32 * 1024  # prompt tokens that are submitted within one turn of the event loop


@dataclass(frozen=True, slots=True)
class Choice:
    """One running sequence of a request. index: its place among the choices of the request."""

    index: int
    prompt_index: int
    prompt_tokens: int
    generation: Generation


class GenerationEndpoint(Generic[AnyRequest]):
    """`/v1/completions` or `/v1/chat/completions`, as an ASGI application for POST requests.

    request_timeout_s: longest time of one request in the stack, None for no limit.
    """

    def __init__(
        self,
        host: ModelHost,
        reader: RequestReader,
        kind: type[AnyRequest],
        shape: AnswerFormat,
        request_timeout_s: float | None,
    ) -> None:
        self._host = host
        self._reader = reader
        self._kind = kind
        self._shape = shape
        self._request_timeout_s = request_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            HttpError, MuaiError: The request cannot be served, and nothing of the answer has been sent.
            ClientGone: The client went away before its request was complete.
        """
        self._host.check_welcome()
        check_json(scope)
        with self._reader.hold() as body:
            request = await self._reader.parse(self._kind, body, scope, receive)
            stack = await self._host.stack(request.model)
            stack.check_room(request.sequences)
            try:
                prompts = await self._reader.tokenize(request, stack.tokenizer, stack.info.engine.max_model_len)
            except InvalidRequest as error:
                stack.refuse(error)
                raise
        answer = AnswerIdentity(
            id=f"{self._shape.id_prefix}{uuid.uuid4().hex}", model=request.model, created=int(time.time())
        )
        choices = await self._submit(stack, request, prompts, answer.id)
        disconnect = Disconnect(receive, [choice.generation for choice in choices])
        watcher = asyncio.create_task(disconnect.watch())
        try:
            if request.stream:
                await _Stream(send, self._shape, answer, _usage_wanted(request)).run(choices, disconnect)
            else:
                response = await self._whole(answer, choices)
                await response(scope, receive, send)
        except RequestError:
            if not disconnect.gone:  # else no client waits for the error
                raise
        finally:
            watcher.cancel()
            for choice in choices:
                choice.generation.cancel()

    async def _submit(
        self, stack: InferenceStack, request: AnyRequest, prompts: Sequence[Sequence[int]], answer_id: str
    ) -> list[Choice]:
        """Submit all sequences of the request or none: if one is refused, the others are cancelled."""
        choices: list[Choice] = []
        total = len(prompts) * request.choices
        stop = StopStrings(request.stop)
        tokens = 0
        try:
            for prompt_index, prompt in enumerate(prompts):
                max_tokens = request.token_limit() or max(1, stack.info.engine.max_model_len - len(prompt))
                for number in range(request.choices):
                    tokens += len(prompt)
                    if tokens > TOKENS_PER_TURN:
                        tokens = 0
                        await asyncio.sleep(0)
                    index = len(choices)
                    generation = stack.submit(
                        GenerationRequest(
                            request_id=answer_id if total == 1 else f"{answer_id}-{index}",
                            prompt=prompt,
                            max_tokens=max_tokens,
                            sampling=request.sampling(number),
                            stop=stop,
                            ignore_eos=bool(request.ignore_eos),
                            timeout_s=self._request_timeout_s,
                            stream=bool(request.stream),
                            priority=request.priority or 0,
                            cache_salt=request.cache_salt or "",
                            keep_ids=bool(request.return_token_ids),
                            begun=request.begun,
                        )
                    )
                    choices.append(Choice(index, prompt_index, len(prompt), generation))
        except (MuaiError, asyncio.CancelledError):
            for choice in choices:
                choice.generation.cancel()
            raise
        return choices

    async def _whole(self, answer: AnswerIdentity, choices: Sequence[Choice]) -> Response:
        results = await _all([_collect(choice) for choice in choices])
        body = whole(self._shape, answer, results, _total_usage(choices, results))
        return json_response(body, headers={"x-request-id": answer.id})


class _Stream:
    """One streamed answer: every piece of output is sent as soon as the engine has produced it.

    The status line waits for the first output, so that a request that fails while it is queued gets its true status.
    """

    def __init__(self, send: Send, shape: AnswerFormat, answer: AnswerIdentity, usage: Usage) -> None:
        self._send = send
        self._shape = shape
        self._answer = answer
        self._usage = usage
        self._started = False

    async def run(self, choices: Sequence[Choice], disconnect: Disconnect) -> None:
        """Send the whole stream.

        Raises:
            RequestError: The request failed before anything was sent, or the client has gone.
        """
        try:
            results = await _all([self._pump(choice) for choice in choices])
        except RequestError as error:
            if not self._started or disconnect.gone:
                raise
            await self._write(error_event(http_error_of(error).document()), more=False)
            return
        except Exception:
            if not self._started:
                raise
            log.exception("stream %s failed", self._answer.id)
            await self._write(error_event(internal_error().document()), more=False)
            return
        tail = DONE
        if self._usage is not Usage.NONE:
            usage = _total_usage(choices, results)
            tail = usage_event(self._shape, self._answer, usage, _phases(choices)) + DONE
        await self._write(tail, more=False)

    async def _pump(self, choice: Choice) -> Result:
        frames = Frames(self._shape, self._answer, choice.index, choice.prompt_tokens, self._usage)
        opening = frames.opening()
        async for delta in choice.generation:
            if delta.finish_reason is not None:
                ending = frames.ending(delta.text, delta.finish_reason, delta.output_tokens)
                await self._write(opening + ending)
                return Result("", delta.finish_reason, choice.prompt_tokens, delta.output_tokens, delta.cached_tokens)
            if delta.text:
                await self._write(opening + frames.text(delta.text, delta.output_tokens))
                opening = b""
        raise RequestError("the engine ended the stream without a result")

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        if not self._started:
            self._started = True
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-request-id", self._answer.id.encode()),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


async def _collect(choice: Choice) -> Result:
    texts: list[str] = []
    async for delta in choice.generation:
        texts.append(delta.text)
        if delta.finish_reason is not None:
            return Result(
                "".join(texts),
                delta.finish_reason,
                choice.prompt_tokens,
                delta.output_tokens,
                delta.cached_tokens,
                choice.generation.token_ids,
            )
    raise RequestError("the engine ended the request without a result")


async def _all(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return the results in the given order; the first failure cancels the rest and is raised."""
    if len(work) == 1:  # nearly always: no task needed
        return [await work[0]]
    tasks = [asyncio.create_task(item) for item in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    finally:
        tasks.clear()  # a failed task holds its error, whose traceback holds this frame


def _usage_wanted(request: GenerationFields) -> Usage:
    options = request.stream_options
    if options is None or not options.include_usage:
        return Usage.NONE
    return Usage.CONTINUOUS if options.continuous_usage_stats else Usage.FINAL


def _phases(choices: Sequence[Choice]) -> dict[str, float] | None:
    """Return the milliseconds that the only choice waited in the queue, and from there to its first token."""
    generation = choices[0].generation
    if len(choices) > 1 or generation.queue_s is None or generation.prefill_s is None:
        return None
    return {"queue_ms": round(generation.queue_s * 1e3, 3), "prefill_ms": round(generation.prefill_s * 1e3, 3)}


def _total_usage(choices: Sequence[Choice], results: Sequence[Result]) -> dict[str, Any]:
    """Return the usage of the whole answer; a prompt counts once, for any number of choices."""
    first = {choice.prompt_index: result for choice, result in reversed(list(zip(choices, results, strict=True)))}
    cached = [result.cached_tokens for result in first.values() if result.cached_tokens is not None]
    return usage_document(
        prompt_tokens=sum(result.prompt_tokens for result in first.values()),
        output_tokens=sum(result.output_tokens for result in results),
        cached_tokens=sum(cached) if cached else None,
    )
