"""Nothing that a server sends may cost the records of a run, and counts per chunk are never believed in part."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.load import completion_stream
from muai_lab.load.completion_stream import CompletionStream, StreamError, error_message
from muai_lab.load.records import records_table
from muai_lab.load.stated_usage import NO_CLAIM
from muai_lab.load.token_counts import infer_counts
from muai_lab.load.usual_events import NotUsual
from muai_lab.request_record import RequestRecord
from muai_lab.window import Window

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 40)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=6)  # half surrogates too
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def often(expected: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what the field should hold, sometimes anything."""
    return st.one_of(expected, expected, expected, anything)


usages = st.fixed_dictionaries(
    {},
    optional={
        "completion_tokens": often(st.integers(0, 40)),
        "prompt_tokens": often(st.integers(0, 40)),
        "output_tokens": anything,
        "prompt_tokens_details": often(st.fixed_dictionaries({"cached_tokens": anything})),
        "completion_tokens_details": often(st.fixed_dictionaries({"reasoning_tokens": often(st.integers(0, 40))})),
    },
)
deltas = st.fixed_dictionaries(
    {},
    optional={name: often(st.text(max_size=3)) for name in ("content", "reasoning", "role", "tool_calls", "other")},
)
choices = st.fixed_dictionaries(
    {},
    optional={
        "text": often(st.text(max_size=3)),
        "delta": often(deltas),
        "message": anything,
        "finish_reason": often(st.sampled_from([None, "stop", "length", "error"])),
        "error": st.none() | anything,
    },
)
events = st.fixed_dictionaries(
    {},
    optional={
        "choices": often(st.lists(often(choices), max_size=2)),
        "usage": often(usages),
        "error": st.none(),
        "x_muai": often(st.fixed_dictionaries({"queue_ms": anything, "prefill_ms": anything})),
        "message": anything,
    },
)
payloads = st.one_of(
    often(events).map(lambda event: json.dumps(event).encode("utf-8", "replace")),
    st.binary(max_size=20),
    st.just(b"[DONE]"),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(payloads, st.integers(0, 2)), max_size=12))
def test_any_stream_gives_a_record_that_can_be_stored(sent: list[tuple[bytes, int]]) -> None:
    record = RequestRecord(0, max_tokens=16, released_ns=0)
    record.answer = []
    record.sent_ns = now = 0
    stream = CompletionStream(record)
    try:
        for payload, later_ms in sent:
            now += later_ms * 1_000_000
            stream.take([payload], now)
        stream.finish()
    except StreamError as error:
        record.end("error", now, str(error))
    else:
        record.end("ok", now)

    row = records_table([record], Window(0, 0, 10**12, 10**12)).to_pylist()[0]

    assert row["status"] in ("ok", "error")
    "".join(record.answer).encode()
    if record.tokens_known and record.status == "ok":
        assert sum(record.chunk_tokens) + (record.unseen_tokens or 0) == record.output_tokens
    if record.status == "ok":
        assert record.chunk_t_ns or record.output_tokens


DEVIATIONS: list[dict[str, Any]] = [
    *({"usage": usage} for usage in (None, {}, {"completion_tokens": 0}, {"output_tokens": 2}, 7)),
    *({"error": error} for error in (None, "", {"message": "broken"})),
    {"usage": None, "x_groq": {"usage": {"completion_tokens": 4}}},
    {"usage": None, "timings": {"predicted_n": 5}},
    {"usage": None, "choices": [{"index": 0, "text": "a", "usage": {"completion_tokens": 2}}]},
    {"choices": []},
    {"x_muai": {"queue_ms": 1.0, "prefill_ms": 2.0}, "choices": []},
]
CHOICE_DEVIATIONS: list[dict[str, Any]] = [
    *({"text": text} for text in ("", None, 3, "b")),
    *({"delta": delta} for delta in (None, {}, {"content": ""}, {"content": "c"}, {"content": ["c"]}, {"role": "a"})),
    *({"finish_reason": reason} for reason in ("", "stop", "length", "tool_calls", "content_filter")),
    *({"index": index} for index in (None, 1)),
    {"error": "broken"},
]


def usual(content: dict[str, Any], count: int) -> dict[str, Any]:
    choice = {"index": 0, **content, "finish_reason": None}
    return {"choices": [choice], "usage": {"completion_tokens": count, "prompt_tokens": 10 * count}}


def but(event: dict[str, Any], deviation: dict[str, Any]) -> dict[str, Any]:
    """The event with a deviation of itself or of its choice."""
    if deviation in CHOICE_DEVIATIONS:
        return event | {"choices": [event["choices"][0] | deviation]}
    return event | deviation


CONTENTS = [{"text": "a"}, {"delta": {"content": "a"}}]


@st.composite
def nearly_usual(draw: st.DrawFn) -> bytes:
    """An event of text; every second one differs from the usual in one thing."""
    event = usual(draw(st.sampled_from(CONTENTS)), draw(st.integers(1, 6)))
    return json.dumps(but(event, draw(st.just({}) | st.sampled_from([*DEVIATIONS, *CHOICE_DEVIATIONS])))).encode()


reads = st.lists(
    st.lists(st.one_of(*[nearly_usual()] * 7, st.sampled_from([b"[DONE]", b"", b"{"])), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


def read_of(sent: list[list[bytes]], *, keeps_text: bool) -> dict[str, Any]:
    """All that a stream leaves in its record, with the error that ended it."""
    record = RequestRecord(0, max_tokens=16)
    if keeps_text:
        record.answer, record.texts = [], []
    stream = CompletionStream(record)
    error = None
    try:
        for now, payloads_of_read in enumerate(sent):
            stream.take(payloads_of_read, now)
        stream.finish()
    except StreamError as raised:
        error = str(raised)
    stream.settle()
    fields = {name: getattr(record, name) for name in RequestRecord.__slots__}
    return fields | {"raised": error, "counts": stream.usage_per_chunk}


def both_ways(sent: list[list[bytes]], *, keeps_text: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a stream leaves if usual events are read the short way, and if every event is read the long way."""
    short = read_of(sent, keeps_text=keeps_text)
    with patch.object(completion_stream, "decode_usual", side_effect=NotUsual):
        return short, read_of(sent, keeps_text=keeps_text)


@settings(max_examples=100, deadline=None)
@given(reads, st.booleans())
def test_usual_events_mean_the_same_the_short_way_and_the_long_way(sent: list[list[bytes]], keeps_text: bool) -> None:
    short, long = both_ways(sent, keeps_text=keeps_text)

    assert short == long


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("deviation", [*DEVIATIONS, *CHOICE_DEVIATIONS], ids=json.dumps)
def test_what_deviates_is_read_the_long_way(deviation: dict[str, Any], place: int) -> None:
    for content in CONTENTS:
        events = [usual(content, count) for count in (1, 2, 3)]
        events[place] = but(events[place], deviation)
        short, long = both_ways([[json.dumps(event).encode() for event in events], [b"[DONE]"]], keeps_text=True)

        assert short == long


@given(
    st.lists(st.one_of(st.just(NO_CLAIM), st.integers(0, 40)), max_size=12),
    st.none() | st.integers(0, 60),
    st.booleans(),
    st.integers(0, 20),
)
def test_counts_per_chunk_sum_to_the_count_of_the_answer(
    claims: list[int], final: int | None, stopped: bool, reasoning: int
) -> None:
    found = infer_counts(claims, final, ended_by_stop=stopped, reasoning=reasoning)

    assert found.total is None or found.total > 0
    if found.per_chunk is not None:
        assert len(found.per_chunk) == len(claims)
        assert min(found.per_chunk) >= 0
        assert found.total == sum(found.per_chunk) + found.unseen
    if final and found.total is not None:
        assert found.total == final


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_counts_so_far_and_counts_of_each_chunk_give_the_same(tokens: list[int]) -> None:
    so_far = [sum(tokens[: i + 1]) for i in range(len(tokens))]

    for claims in (so_far, tokens):
        found = infer_counts(claims, so_far[-1])

        assert (found.total, found.per_chunk) == (so_far[-1], tokens)


@given(anything)
def test_an_error_of_any_shape_has_a_text(body: Any) -> None:
    assert isinstance(error_message(json.loads(json.dumps(body))), str)
