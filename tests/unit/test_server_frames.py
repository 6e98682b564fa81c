"""Events are put together from prepared bytes; whatever the text, they are the JSON that OpenAI's clients expect."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.server.frames import (
    CHAT,
    COMPLETION,
    AnswerFormat,
    AnswerIdentity,
    Frames,
    Usage,
    usage_document,
    usage_event,
)

# Text of a decoder holds no lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SHAPES = st.sampled_from([COMPLETION, CHAT])


def events(raw: bytes) -> list[dict[str, object]]:
    parts = raw.decode().split("\n\n")
    assert parts.pop() == ""
    return [json.loads(part.removeprefix("data: ")) for part in parts]


@settings(deadline=None)  # a busy machine is no failure
@given(SHAPES, TEXT, TEXT, st.integers(0, 9), st.integers(1, 9999), st.sampled_from(list(Usage)))
def test_every_text_event_is_the_document_that_it_stands_for(
    shape: AnswerFormat, model: str, text: str, index: int, tokens: int, usage: Usage
) -> None:
    frames = Frames(shape, AnswerIdentity("id-1", model, 5), index, 7, usage)

    (event,) = events(frames.text(text, tokens))

    content = {"text": text} if shape is COMPLETION else {"delta": {"content": text}}
    expected: dict[str, object] = {
        "id": "id-1",
        "object": shape.chunk_object,
        "created": 5,
        "model": model,
        "choices": [{"index": index, **content, "logprobs": None, "finish_reason": None}],
    }
    if usage is Usage.FINAL:
        expected["usage"] = None
    if usage is Usage.CONTINUOUS:
        expected["usage"] = usage_document(7, tokens, None)
    assert event == expected


@settings(deadline=None)
@given(SHAPES, TEXT, st.sampled_from(["stop", "length"]), st.sampled_from(list(Usage)))
def test_the_ending_carries_the_last_text_and_the_reason(
    shape: AnswerFormat, text: str, reason: str, usage: Usage
) -> None:
    frames = Frames(shape, AnswerIdentity("id-1", "m", 5), 0, 7, usage)

    ending = events(frames.ending(text, reason, 3))

    choices = [event["choices"][0] for event in ending]  # type: ignore[index]
    said = "".join(choice["text"] if shape is COMPLETION else choice["delta"].get("content", "") for choice in choices)
    assert said == text
    assert [choice["finish_reason"] for choice in choices][-1] == reason


def test_the_phases_ride_on_the_event_with_the_usage() -> None:
    phases = {"queue_ms": 1.5, "prefill_ms": 20.25}

    (event,) = events(usage_event(CHAT, AnswerIdentity("id-1", "m", 5), usage_document(7, 3, None), phases))

    assert (event["choices"], event["x_muai"]) == ([], phases)
    assert "x_muai" not in usage_event(CHAT, AnswerIdentity("id-1", "m", 5), usage_document(7, 3, None)).decode()


@pytest.mark.parametrize(("cached", "details"), [(None, None), (0, {"cached_tokens": 0}), (4, {"cached_tokens": 4})])
def test_the_cache_is_mentioned_only_where_there_is_one(cached: int | None, details: object) -> None:
    (event,) = events(usage_event(CHAT, AnswerIdentity("id-1", "m", 5), usage_document(7, 3, cached)))

    usage = event["usage"]
    assert isinstance(usage, dict)
    assert usage["total_tokens"] == 10
    assert usage.get("prompt_tokens_details") == details
