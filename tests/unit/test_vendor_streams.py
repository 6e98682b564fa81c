"""Streams with the habits of particular servers and gateways; the truth is that of `test_field_streams`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest

from muai_lab.load.completion_stream import StreamError
from muai_lab.load.stated_usage import BEYOND_TOTAL
from muai_lab.load.token_counts import CONTRADICTION
from tests.unit.test_field_streams import MS, TOKENS, Event, at, chunk, delta, end, measured, recorded, usage


def tokens(**more: Any) -> Iterator[Event]:
    for i in range(TOKENS):
        yield at(i), delta(content="tok ", **more)


def last(event: dict[str, Any]) -> Iterator[Event]:
    yield at(TOKENS - 1), event
    yield at(TOKENS - 1), b"[DONE]"


def role_chunk_with_a_placeholder_count() -> Iterator[Event]:
    yield 5.0, delta(role="assistant", content="", usage=usage(1)["usage"])
    for i in range(TOKENS - 1):
        yield at(i), delta(content="tok ")
    yield at(TOKENS - 1), delta("length", content="tok ", usage=usage(TOKENS)["usage"])
    yield at(TOKENS - 1), b"[DONE]"


def role_chunk_that_counts_the_first_token() -> Iterator[Event]:
    yield 5.0, delta(role="assistant", content="", usage=usage(1)["usage"])
    for i in range(TOKENS):
        yield at(i), delta(content="tok ", usage=usage(i + 1)["usage"])
    yield from end()


def empty_parts_with_the_role() -> Iterator[Event]:
    yield 5.0, delta(role="assistant", content=[{"type": "text", "text": ""}])
    yield from tokens()
    yield from end()


def empty_function_call_with_every_chunk() -> Iterator[Event]:
    nothing = {"function_call": {"name": "", "arguments": ""}, "tool_calls": [{"index": 0, "function": {"name": None}}]}
    yield 5.0, delta(role="assistant", content="", **nothing)
    yield from tokens(**nothing)
    yield from end()


def usage_of_groq() -> Iterator[Event]:
    yield from tokens()
    yield from last({**delta("length"), "x_groq": {"id": "req", **usage(TOKENS)}})


def usage_beside_the_choice() -> Iterator[Event]:
    yield from tokens()
    yield from last({"choices": [{"index": 0, "delta": {}, "finish_reason": "length", **usage(TOKENS)}]})


def empty_events_and_a_blank_after_the_end() -> Iterator[Event]:
    yield 5.0, b""
    yield from tokens()
    yield from list(end())[:-1]
    yield at(TOKENS - 1), b"[DONE] "


def cost_after_the_usage() -> Iterator[Event]:
    yield from tokens()
    yield from list(end())[:-1]
    yield from last({"choices": [], "usage": {"cost": 0.1}})


def filter_results() -> Iterator[Event]:
    yield 5.0, {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    yield 6.0, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "content_filter_results": {}}]}
    yield from tokens()
    yield from end()


def numbered_choices() -> Iterator[Event]:
    for i in range(TOKENS):
        yield at(i), {"choices": [{"index": i, "text": "tok ", "finish_reason": None}]}
    yield from list(end())[1:]


@pytest.mark.parametrize(
    "told",
    [
        role_chunk_with_a_placeholder_count,
        role_chunk_that_counts_the_first_token,
        empty_parts_with_the_role,
        empty_function_call_with_every_chunk,
        usage_of_groq,
        usage_beside_the_choice,
        empty_events_and_a_blank_after_the_end,
        cost_after_the_usage,
        filter_results,
        numbered_choices,
    ],
)
def test_the_truth_is_found(told: Callable[[], Iterator[Event]]) -> None:
    answer = measured(told())

    assert answer["tokens"] == TOKENS
    assert answer["prompt_tokens"] == 20
    assert answer["ttft_s"] == pytest.approx(0.050)
    assert answer["tpot_s"] == pytest.approx(0.010)
    assert answer["e2e_s"] == pytest.approx(0.200)


def test_a_placeholder_count_and_a_stop_token_do_not_make_the_role_a_token() -> None:
    def told() -> Iterator[Event]:
        yield 5.0, delta(role="assistant", content="", usage=usage(1)["usage"])
        for i in range(TOKENS - 1):
            yield at(i), delta(content="tok ")
        yield from last(delta("stop", usage=usage(TOKENS)["usage"]))

    answer = measured(told())

    assert (answer["tokens"], answer["decode_tokens"]) == (TOKENS, 14)
    assert answer["ttft_s"] == pytest.approx(0.050)


def test_the_timings_of_llama_cpp_count_the_answer_and_not_the_prompt() -> None:
    timings = {"prompt_n": 3, "predicted_n": TOKENS}

    answer = measured([*tokens(), *last({**delta("length"), "timings": timings})])

    assert answer["tokens"] == TOKENS
    assert pd.isna(answer["prompt_tokens"])


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param(([16] * 4, None), id="the total in each chunk"),
        pytest.param(([1, 3, 4, 4, 4], None), id="so far or of each chunk"),
        pytest.param(([*range(1, 17)], 10), id="shrinks at the end"),
        pytest.param(([None] * 8, 1), id="one token in eight chunks"),
        pytest.param(([None] * 8, 0), id="zero after the chunks"),
    ],
)
def test_counts_that_can_be_read_in_two_ways_or_none_are_not_used(claims: tuple[list[int | None], int | None]) -> None:
    of_chunks, final = claims
    events = [(at(i), chunk(**({} if claim is None else usage(claim)))) for i, claim in enumerate(of_chunks)]

    answer = measured([*events, *end(final)])

    assert pd.isna(answer["tokens"])
    assert pd.isna(answer["tpot_s"])
    assert answer["note"] == CONTRADICTION


@pytest.mark.parametrize("details", [{}, {"completion_tokens_details": {"reasoning_tokens": 12}}])
def test_tokens_beyond_prompt_and_answer_are_named(details: dict[str, Any]) -> None:
    answer = measured([*tokens(), *end(total_tokens=20 + TOKENS + 12, **details)])

    assert answer["tokens"] == TOKENS
    assert answer["note"] == BEYOND_TOTAL


def test_tokens_in_the_cache_are_those_of_either_spelling() -> None:
    assert recorded([*tokens(), *end(prompt_tokens_details={"cached_tokens": 7})]).cached_prompt_tokens == 7
    assert recorded([*tokens(), *end(prompt_cache_hit_tokens=7)]).cached_prompt_tokens == 7


def mixed() -> Iterator[Event]:
    for i in range(TOKENS):
        for index in (0, 1):
            yield at(i), {"choices": [{"index": index, "text": "tok ", "finish_reason": None}]}


def one_after_the_other() -> Iterator[Event]:
    for index in (0, 1):
        yield 50.0, {"choices": [{"index": index, "text": "tok ", "finish_reason": "length"}]}


def in_one_event() -> Iterator[Event]:
    yield 50.0, {"choices": [{"text": "tok "}, {"text": "tok "}]}


@pytest.mark.parametrize("told", [mixed, one_after_the_other, in_one_event])
def test_several_choices_are_refused(told: Callable[[], Iterator[Event]]) -> None:
    with pytest.raises(StreamError, match="several choices"):
        recorded([*told(), *end()])


def test_a_finish_reason_that_is_the_text_null_ends_nothing() -> None:
    with pytest.raises(StreamError, match="broke off"):
        recorded([(at(i), delta("null", content="tok ")) for i in range(4)])


def test_a_stream_in_another_format_is_shown() -> None:
    with pytest.raises(StreamError, match=r'without choices: \{"content": "tok"'):
        recorded([(50.0, {"content": "tok", "stop": False})])
    with pytest.raises(StreamError, match="insufficient balance"):
        recorded([(50.0, {"choices": None, "base_resp": {"status_msg": "insufficient balance"}}), (50.0, b"[DONE]")])


def test_times_are_those_of_the_content_when_a_count_before_it_is_dropped() -> None:
    record = recorded(role_chunk_that_counts_the_first_token())

    assert list(record.chunk_t_ns) == [round(at(i) * MS) for i in range(TOKENS)]
    assert list(record.chunk_tokens) == [1] * TOKENS
