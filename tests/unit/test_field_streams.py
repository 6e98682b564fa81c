"""Streams as servers in the field send them: 16 tokens, the first after 50 ms, then one each 10 ms, told in many ways.

Whatever the form, the figures must be the truth (TTFT 50 ms, TPOT 10 ms, E2E 200 ms, 16 tokens), or missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pandas as pd
import pytest

from muai_lab.analysis.attainment import met, misses
from muai_lab.analysis.frames import requests_frame
from muai_lab.load.completion_stream import CompletionStream, StreamError
from muai_lab.load.records import records_table
from muai_lab.request_record import RequestRecord
from muai_lab.slo import Slo
from muai_lab.window import Window
from muai_lab.window import Window as AnalysisWindow

TOKENS = 16
MS = 1_000_000
Event = tuple[float, Any]
"""Milliseconds after the request was sent, and the event (bytes go as they are)."""


def at(token: int) -> float:
    """When the server has made a token (the first is 0)."""
    return 50.0 + 10.0 * token


def usage(completed: int, **more: Any) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": 20, "completion_tokens": completed, **more}}


def chunk(text: str = "tok ", *, finish: Any = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}], **more}


def delta(finish: Any = None, *, usage: Any = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}], **({"usage": usage} if usage else {})}


def end(completed: int | None = TOKENS, at_ms: float = at(TOKENS - 1), **more: Any) -> Iterator[Event]:
    """The usual end: finish reason, usage, [DONE]."""
    yield at_ms, chunk("", finish="length")
    if completed is not None:
        yield at_ms, {"choices": [], **usage(completed, **more)}
    yield at_ms, b"[DONE]"


def counts_so_far() -> Iterator[Event]:
    for i in range(TOKENS):
        yield at(i), chunk(**usage(i + 1))
    yield from end()


def usage_beside_the_last_chunk() -> Iterator[Event]:
    for i in range(TOKENS - 1):
        yield at(i), chunk()
    yield at(TOKENS - 1), chunk(finish="length", **usage(TOKENS))
    yield at(TOKENS - 1), b"[DONE]"


def usage_of_each_chunk() -> Iterator[Event]:
    for i in range(TOKENS):
        yield at(i), chunk(**usage(1))
    yield from end()


def usage_of_each_chunk_without_a_final_one() -> Iterator[Event]:
    for i in range(TOKENS):
        yield at(i), chunk(**usage(1))
    yield from end(None)


def usage_at_the_end() -> Iterator[Event]:
    for i in range(TOKENS):
        yield at(i), chunk()
    yield from end()


def usage_now_and_then() -> Iterator[Event]:
    for i in range(TOKENS):
        yield at(i), chunk(**(usage(i + 1) if i % 4 == 3 else {}))
    yield from end()


def halves_of_surrogate_pairs() -> Iterator[Event]:
    for i in range(TOKENS):
        event = orjson.dumps(chunk("XX", **usage(i + 1))).replace(b"XX", b"\\ude00" if i % 2 else b"\\ud83d")
        yield at(i), event
    yield from end()


def finish_reason_that_is_an_object() -> Iterator[Event]:
    for i in range(TOKENS):
        yield at(i), chunk(**usage(i + 1))
    yield at(TOKENS - 1), chunk("", finish={"type": "length"})
    yield at(TOKENS - 1), {"choices": [], **usage(TOKENS)}
    yield at(TOKENS - 1), b"[DONE]"


def not_a_number_beside_the_text() -> Iterator[Event]:
    for i in range(TOKENS):
        yield at(i), orjson.dumps(chunk(**usage(i + 1))).replace(b'"tok "', b'"tok ","logprobs":NaN')
    yield from end()


def unknown_field_with_growing_counts() -> Iterator[Event]:
    for i in range(TOKENS):
        field = "reasoning_text" if i < TOKENS // 2 else "content"
        yield at(i), delta(usage=usage(i + 1)["usage"], **{field: "tok "})
    yield from end()


def content_in_parts() -> Iterator[Event]:
    for i in range(TOKENS):
        yield at(i), delta(content=[{"type": "text", "text": "tok "}], usage=usage(i + 1)["usage"])
    yield from end()


@pytest.mark.parametrize(
    "told",
    [
        counts_so_far,
        usage_beside_the_last_chunk,
        usage_of_each_chunk,
        usage_of_each_chunk_without_a_final_one,
        usage_at_the_end,
        usage_now_and_then,
        halves_of_surrogate_pairs,
        finish_reason_that_is_an_object,
        not_a_number_beside_the_text,
        unknown_field_with_growing_counts,
        content_in_parts,
    ],
)
def test_the_truth_is_found(told: Callable[[], Iterator[Event]]) -> None:
    answer = measured(told())

    assert answer["tokens"] == TOKENS
    assert answer["ttft_s"] == pytest.approx(0.050)
    assert answer["tpot_s"] == pytest.approx(0.010)
    assert answer["e2e_s"] == pytest.approx(0.200)
    assert answer["prompt_tokens"] == 20


def test_hidden_tokens_before_the_first_chunk_belong_to_the_time_to_first_token() -> None:
    def hidden() -> Iterator[Event]:
        for i in range(12, TOKENS):
            yield at(i), chunk(**usage(i + 1))
        yield from end(completion_tokens_details={"reasoning_tokens": 12})

    answer = measured(hidden())

    assert (answer["tokens"], answer["decode_tokens"]) == (TOKENS, 3)
    assert answer["ttft_s"] == pytest.approx(0.170)
    assert answer["tpot_s"] == pytest.approx(0.010)
    assert missed_by(answer, tpot_ms=5) == ["tpot"]


def test_hidden_tokens_are_recognised_by_their_final_count_too() -> None:
    def hidden() -> Iterator[Event]:
        for i in range(12, TOKENS):
            yield at(i), chunk()
        yield from end(completion_tokens_details={"reasoning_tokens": 12})

    answer = measured(hidden())

    assert answer["tpot_s"] == pytest.approx(0.010)
    assert "hidden reasoning" in answer["note"]


def test_tokens_that_came_with_the_first_chunk_do_not_shorten_the_time_per_token() -> None:
    def bundle() -> Iterator[Event]:
        for i in range(7, TOKENS):
            yield at(i), chunk(**usage(i + 1))
        yield from end()

    answer = measured(bundle())

    assert answer["tpot_s"] == pytest.approx(0.010)
    assert answer["ttft_s"] == pytest.approx(0.120)


def test_tokens_that_only_the_final_usage_reveals_end_the_answer_and_have_no_pace() -> None:
    def tail() -> Iterator[Event]:
        for i in range(TOKENS // 2):
            yield at(i), chunk(**usage(i + 1))
        yield from end()

    answer = measured(tail())

    assert (answer["tokens"], answer["unseen_tokens"]) == (TOKENS, 8)
    assert answer["e2e_s"] == pytest.approx(0.200)
    assert answer["tpot_s"] == pytest.approx(0.010)


def test_an_answer_of_hidden_tokens_only_has_an_end_and_no_first_token() -> None:
    answer = measured(end(at_ms=200.0, completion_tokens_details={"reasoning_tokens": TOKENS}))

    assert (answer["tokens"], answer["unseen_tokens"]) == (TOKENS, TOKENS)
    assert answer["e2e_s"] == pytest.approx(0.200)
    assert pd.isna(answer["ttft_s"])
    assert missed_by(answer, ttft_ms=1_000) == ["not_judgeable"]


def test_without_usage_the_number_of_tokens_is_missing_and_not_that_of_the_chunks() -> None:
    def silent() -> Iterator[Event]:
        for i in range(3, TOKENS, 4):
            yield at(i), chunk("tok tok tok tok ")
        yield from end(None)

    answer = measured(silent())

    assert pd.isna(answer["tokens"])
    assert pd.isna(answer["tpot_s"])
    assert answer["e2e_s"] == pytest.approx(0.200)
    assert missed_by(answer, tpot_ms=50) == ["not_judgeable"]


def test_a_count_of_zero_beside_chunks_is_no_count() -> None:
    def zero() -> Iterator[Event]:
        for i in range(TOKENS):
            yield at(i), chunk()
        yield at(TOKENS - 1), chunk("", finish="length")
        yield at(TOKENS - 1), {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}
        yield at(TOKENS - 1), b"[DONE]"

    answer = measured(zero())

    assert pd.isna(answer["tokens"])
    assert pd.isna(answer["prompt_tokens"])
    assert missed_by(answer, tpot_ms=5) == ["not_judgeable"]


@pytest.mark.parametrize("spread_us", [0.0, 20.0])
def test_chunks_that_arrive_together_have_no_pace(spread_us: float) -> None:
    def pipe() -> Iterator[Event]:
        for i in range(TOKENS):
            yield 200.0 + i // 8 * spread_us / 1e3, chunk(**usage(i + 1))
        yield from end()

    answer = measured(pipe())

    assert answer["together"]
    assert pd.isna(answer["tpot_s"])
    assert answer["tokens"] == TOKENS
    assert missed_by(answer, tpot_ms=5) == ["not_judgeable"]
    assert missed_by(answer, e2e_ms=300) == []


def test_events_of_one_read_are_one_chunk_of_their_tokens() -> None:
    def pairs() -> Iterator[Event]:
        for i in range(TOKENS):
            yield at(i // 2 * 2 + 1), chunk(**usage(i + 1))
        yield from end()

    record = recorded(pairs())

    assert list(record.chunk_tokens) == [2] * 8
    assert record.read_together == 8
    assert record.tpot_s == pytest.approx(0.010)


def test_the_stop_token_has_no_chunk_of_its_own() -> None:
    def stopped() -> Iterator[Event]:
        for i in range(TOKENS - 1):
            yield at(i), chunk()
        yield at(TOKENS - 1), chunk("", finish="stop")
        yield at(TOKENS - 1), {"choices": [], **usage(TOKENS)}
        yield at(TOKENS - 1), b"[DONE]"

    answer = measured(stopped())

    assert (answer["tokens"], answer["decode_tokens"], answer["unseen_tokens"]) == (TOKENS, 14, 1)
    assert answer["tpot_s"] == pytest.approx(0.010)
    assert answer["e2e_s"] == pytest.approx(0.200)


def test_an_slo_on_the_pace_does_not_apply_to_a_single_token() -> None:
    answer = measured([(50.0, chunk(finish="length", **usage(1))), (50.0, b"[DONE]")])

    assert missed_by(answer, tpot_ms=5, ttft_ms=60) == []


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        pytest.param([chunk(), {"object": "error", "message": "engine died", "code": 500}], "engine died", id="object"),
        pytest.param([chunk(), {"error": {"message": "out of memory"}}], "out of memory", id="error"),
        pytest.param([chunk(), chunk("", error={"message": "gone"})], "gone", id="error beside a choice"),
        pytest.param([chunk(), {"error": "plain"}], "plain", id="text"),
        pytest.param([chunk(), {"errors": [{"message": "first"}]}], "first", id="list"),
        pytest.param([chunk(), {"detail": [{"msg": "bad field"}]}], "bad field", id="detail"),
        pytest.param([chunk(), {"type": "error", "message": "overloaded"}], "overloaded", id="type"),
        pytest.param([{"choices": [{"text": "", "error": {"message": "lost"}}]}], "lost", id="in the choice"),
        *(
            pytest.param([chunk(), chunk("", finish=reason)], reason, id=reason)
            for reason in ("error", "abort", "content_filter", "SAFETY", "insufficient_system_resource", "timeout")
        ),
        pytest.param([], r"no token \(16 asked\)", id="only an end"),
        pytest.param(
            [chunk("", finish="stop"), {"choices": [], **usage(0)}],
            r"no token \(16 asked, finish_reason stop, completion_tokens 0\)",
            id="empty",
        ),
        pytest.param(
            [{"choices": [{"message": {"content": "tok"}, "finish_reason": "length"}]}], "message", id="not streamed"
        ),
    ],
)
def test_a_failure_inside_http_200_is_a_failure(events: list[Any], reason: str) -> None:
    with pytest.raises(StreamError, match=reason):
        recorded([*((50.0, event) for event in events), (50.0, b"[DONE]")])


def recorded(events: Any) -> RequestRecord:
    """The record of one answer; the request was due and sent at 0."""
    record = RequestRecord(0, max_tokens=TOKENS, released_ns=0)
    record.sent_ns = 0
    stream = CompletionStream(record)
    for at_ms, event in events:
        stream.take([event if isinstance(event, bytes) else orjson.dumps(event)], round(at_ms * MS))
    stream.finish()
    record.end("ok", 10_000 * MS)
    return record


def measured(events: Any) -> Any:
    """The row of the analysis for one answer."""
    table = records_table([recorded(events)], Window(0, 0, 1_000 * MS, 1_000 * MS))
    return requests_frame(table, AnalysisWindow(0, 0, 1_000 * MS, 1_000 * MS)).iloc[0]


def missed_by(answer: Any, **bounds: float) -> list[str]:
    """The reasons for which the answer misses an SLO; none if it is met."""
    frame = answer.to_frame().T
    slo = Slo(**bounds)
    reasons = [reason for reason, rows in misses(frame, slo).items() if rows.any()]
    assert bool(met(frame, slo)[0]) == (not reasons)
    return reasons
