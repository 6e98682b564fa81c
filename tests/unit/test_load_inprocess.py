"""The in-process target against a scripted stack: what each delta and each refusal becomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from muai_lab.engines.base import Sampling
from muai_lab.errors import (
    EngineError,
    InvalidRequest,
    MuaiError,
    Overloaded,
    RequestCancelled,
    RequestError,
    RequestTimeout,
)
from muai_lab.load.inprocess import InProcessTarget
from muai_lab.request_record import RequestRecord
from muai_lab.stack.request import Delta, GenerationRequest
from muai_lab.workload.schedule import Schedule, ScheduledRequest

REQUEST = ScheduledRequest(3, None, "one two", None, 2, 8, seed=5)


class Words:
    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return [0, *self.encode(messages[0]["content"]), 0]


class ScriptedGeneration:
    def __init__(self, deltas: Sequence[Delta | MuaiError]) -> None:
        self.deltas = deltas
        self.cancelled = False
        self.queue_s, self.prefill_s = 0.25, 0.5

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for delta in self.deltas:
            if isinstance(delta, MuaiError):
                raise delta
            yield delta

    def cancel(self) -> None:
        self.cancelled = True


class ScriptedStack:
    """Answers `submit` with prepared deltas, or refuses."""

    tokenizer = Words()

    def __init__(self, *deltas: Delta | MuaiError, refusal: MuaiError | None = None) -> None:
        self.generation = ScriptedGeneration(deltas)
        self.refusal = refusal
        self.submitted: list[GenerationRequest] = []

    def submit(self, request: GenerationRequest) -> ScriptedGeneration:
        self.submitted.append(request)
        if self.refusal is not None:
            raise self.refusal
        return self.generation


def send(stack: ScriptedStack, *, chat: bool = False, temperature: float = 0.0) -> RequestRecord:
    """The clock ticks by one nanosecond with every reading."""
    ticks = iter(range(1, 1000))
    target = InProcessTarget(stack, chat=chat, temperature=temperature, clock=lambda: next(ticks))
    record = RequestRecord(3, max_tokens=8, intended_ns=0)
    asyncio.run(target.send(REQUEST, record))
    return record


def test_deltas_become_chunks() -> None:
    record = send(ScriptedStack(Delta("a", 1, 1), Delta("bc", 2, 3), Delta("d", 1, 4, "length", 16)))

    assert record.status == "ok"
    assert (record.sent_ns, list(record.chunk_t_ns), record.stream_end_ns) == (1, [2, 3, 4], 5)
    assert list(record.chunk_tokens) == [1, 2, 1]
    assert (record.prompt_tokens, record.output_tokens, record.decode_tokens) == (2, 4, 3)
    assert (record.finish_reason, record.cached_prompt_tokens, record.http_status) == ("length", 16, None)
    assert (record.server_queue_ns, record.server_prefill_ns) == (250_000_000, 500_000_000)


def test_tokens_without_text_come_with_the_next_text() -> None:
    record = send(ScriptedStack(Delta("", 1, 1), Delta("", 1, 2), Delta("é", 1, 3), Delta("", 1, 4, "stop")))

    assert list(record.chunk_tokens) == [3]
    assert record.output_tokens == 4


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (RequestTimeout("too late"), "timeout"),
        (RequestCancelled("shut down"), "cancelled"),
        (RequestError("engine died"), "error"),
    ],
    ids=["timeout", "cancelled", "error"],
)
def test_a_failure_on_the_way_keeps_what_came_before(failure: MuaiError, status: str) -> None:
    record = send(ScriptedStack(Delta("a", 1, 1), failure))

    assert (record.status, record.error) == (status, str(failure))
    assert list(record.chunk_tokens) == [1]


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Overloaded("the queue is full", retry_after_s=1.0), "rejected"),
        (InvalidRequest("the prompt is too long"), "error"),
        (EngineError("pytorch", "its thread ended"), "error"),
    ],
    ids=["overloaded", "invalid", "engine"],
)
def test_a_refusal_is_recorded(refusal: MuaiError, status: str) -> None:
    record = send(ScriptedStack(refusal=refusal))

    assert (record.status, record.error) == (status, str(refusal))
    assert record.first_content_ns is None


def test_cancelling_frees_the_slot() -> None:
    class Endless(ScriptedGeneration):
        async def __aiter__(self) -> AsyncIterator[Delta]:
            yield Delta("a", 1, 1)
            await asyncio.Event().wait()

    stack = ScriptedStack()
    stack.generation = Endless([])

    async def main() -> None:
        task = asyncio.create_task(InProcessTarget(stack).send(REQUEST, RequestRecord(3, max_tokens=8)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert stack.generation.cancelled


@pytest.mark.parametrize(("chat", "prompt"), [(False, [3, 3]), (True, [0, 3, 3, 0])])
def test_the_prompt_is_tokenized_as_the_server_would(chat: bool, prompt: list[int]) -> None:
    stack = ScriptedStack(Delta("a", 1, 1, "stop"))
    send(stack, chat=chat)

    request = stack.submitted[0]
    assert (list(request.prompt), request.max_tokens, request.ignore_eos) == (prompt, 8, True)
    assert request.sampling.seed is None


def test_sampling_uses_the_seed_of_the_schedule() -> None:
    stack = ScriptedStack(Delta("a", 1, 1, "stop"))
    send(stack, temperature=0.7)

    assert (stack.submitted[0].sampling.temperature, stack.submitted[0].sampling.seed) == (0.7, 5)


def test_fields_of_a_request_reach_the_stack_and_what_only_a_server_takes_is_noted() -> None:
    fields = '{"temperature":0.5,"top_p":0.9,"stop":"x","seed":7,"ignore_eos":false,"tools":[{}]}'
    request = replace(REQUEST, extra=fields)
    stack = ScriptedStack(Delta("a", 1, 1, "length"))
    target = InProcessTarget(stack)  # type: ignore[arg-type]  # a scripted stack

    asyncio.run(target.open(Schedule.of([request])))
    asyncio.run(target.send(request, RequestRecord(0, max_tokens=8)))

    asked = stack.submitted[0]
    assert asked.sampling == Sampling(temperature=0.5, top_p=0.9, seed=7)
    assert (asked.stop.texts, asked.ignore_eos) == (("x",), False)
    assert target.notes[1:] == ("target=inprocess does not pass on these fields of requests: tools (1)",)


@pytest.mark.parametrize("fields", ['{"temperature":"hot"}', '{"stop":[1]}', '{"top_k":[]}', '{"seed":1e400}'])
def test_a_field_that_makes_no_sense_fails_its_request_alone(fields: str) -> None:
    record = RequestRecord(0, max_tokens=8)
    target = InProcessTarget(ScriptedStack(), temperature=1.0)  # type: ignore[arg-type]  # a scripted stack

    asyncio.run(target.send(replace(REQUEST, extra=fields), record))

    assert record.status == "error"
