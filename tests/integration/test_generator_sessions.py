"""Conversations over HTTP and over the embedded model: the server's own answers come back to it."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.generator import LoadResult, generate
from muai_lab.load.inprocess import InProcessTarget
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.plan import LoadPlan
from muai_lab.settings.lab import LabSettings
from muai_lab.stack.stack import InferenceStack
from muai_lab.workload.draw import draw_schedule
from muai_lab.workload.schedule import Schedule, ScheduledRequest
from tests.integration.scripted_server import ScriptedServer, status, stream

PLAN = LoadPlan(warmup_s=0.0, duration_s=20.0, drain_s=5.0, request_timeout_s=10.0, concurrency=1)
SYSTEM = '[{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}]'


def answer(*pieces: str, chat: bool) -> bytes:
    choices: list[dict[str, Any]] = [{"delta": {"content": text}} if chat else {"text": text} for text in pieces]
    choices[-1]["finish_reason"] = "stop"
    return stream(*(orjson.dumps({"choices": [choice]}) for choice in choices), b"[DONE]")


async def talk(api: str, *answers: bytes) -> tuple[LoadResult, list[dict[str, Any]]]:
    turns = Schedule.of(
        [
            ScheduledRequest(0, None, None, None, 3, 4, session=0, turn=0, messages=SYSTEM),
            ScheduledRequest(1, None, "two", None, 3, 4, session=0, turn=1, think_s=0.0),
            ScheduledRequest(2, None, "three", None, 3, 4, session=0, turn=2, think_s=0.0),
        ]
    )
    async with ScriptedServer([answer("probe", chat=True), *answers]) as server:
        result = await generate(turns, HttpTarget(server.url, model="m", api=api), PLAN)
        return result, server.requests[1:]


def test_a_chat_sends_what_was_said_and_answered() -> None:
    answers = [answer("u", "no", chat=True), answer("dos", chat=True), answer("tres", chat=True)]
    result, requests = run_on_fast_loop(talk("chat", *answers))

    assert [record.status for record in result.records] == ["ok"] * 3
    contents = [[(message["role"], message["content"]) for message in asked["messages"]] for asked in requests]
    assert contents[0] == [("system", "be brief"), ("user", "one")]
    assert contents[1] == [*contents[0], ("assistant", "uno"), ("user", "two")]
    assert contents[2] == [*contents[1], ("assistant", "dos"), ("user", "three")]


def test_plain_completions_get_the_conversation_as_one_text() -> None:
    answers = [answer("uno", chat=False), answer("dos", chat=False), answer("tres", chat=False)]
    _, requests = run_on_fast_loop(talk("completions", *answers))

    assert [asked["prompt"] for asked in requests] == [
        "be brief\none",
        "be brief\none\nuno\ntwo",
        "be brief\none\nuno\ntwo\ndos\nthree",
    ]


def test_a_refused_turn_ends_the_session() -> None:
    result, requests = run_on_fast_loop(talk("chat", answer("uno", chat=True), status(429, b"{}")))

    assert [record.status for record in result.records] == ["ok", "rejected"]
    assert len(requests) == 2
    assert "turns not sent because an earlier turn of theirs failed: 1" in result.notes


@pytest.mark.parametrize("system_tokens", [0, 12])
def test_the_embedded_model_is_asked_prompts_of_about_the_counted_length(system_tokens: int) -> None:
    settings = LabSettings.model_validate(
        {
            "arrival": {"kind": "closed", "concurrency": 1},
            "load": {"warmup_s": 0.0, "duration_s": 60.0, "requests": 12},
            "workload": {
                "kind": "multi_turn",
                "system_tokens": system_tokens,
                "turns": {"distribution": "fixed", "value": 3},
                "output_tokens": {"distribution": "uniform", "low": 4, "high": 8},
                "think_time": {"distribution": "fixed", "value_s": 0.0},
            },
            "optimization": {"engine_preference": ["pytorch"]},
        }
    )

    async def main() -> tuple[Schedule, LoadResult]:
        stack = await asyncio.to_thread(InferenceStack.open, settings.optimization, settings.model.name)
        try:
            schedule = draw_schedule(settings, stack.tokenizer)
            return schedule, await generate(schedule, InProcessTarget.of(settings, stack), LoadPlan.of(settings))
        finally:
            await stack.close()

    schedule, result = asyncio.run(main())

    assert [record.error for record in result.records] == [None] * 12
    for record in result.records:
        planned = schedule.request(record.index)
        assert record.output_tokens == planned.max_tokens
        assert record.prompt_tokens is not None
        if planned.turn == 0:
            assert record.prompt_tokens == planned.prompt_tokens
        else:  # an answer's text may become other tokens than those that it was made of
            assert record.prompt_tokens == pytest.approx(planned.prompt_tokens, abs=24)
