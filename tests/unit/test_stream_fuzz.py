"""Nothing that a server sends may cost the records of a run, and counts per chunk are never believed in part."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.load.completion_stream import CompletionStream, StreamError, error_message
from muai_lab.load.records import RequestRecord, Window, records_table
from muai_lab.load.stated_usage import NO_CLAIM
from muai_lab.load.token_counts import infer_counts

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
