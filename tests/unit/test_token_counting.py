"""Token counts by a local tokenizer, where the server gives none."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from muai_lab.load.completion_stream import CompletionStream
from muai_lab.load.token_counting import COUNTED_HERE, count_tokens
from muai_lab.request_record import RequestRecord


class WordEnds:
    """One token a word; the space before it belongs to it."""

    def token_ends(self, texts: list[str]) -> list[list[int]]:
        return [[i + 1 for i, c in enumerate(t) if c != " " and (t + " ")[i + 1] == " "] for t in texts]


def answer(*events: tuple[int, str], final: int | None = None, chat: bool = False) -> RequestRecord:
    record = RequestRecord(0, max_tokens=8, released_ns=0)
    record.texts = []
    stream = CompletionStream(record)
    for at_ms, text in events:
        choice: dict[str, Any] = {"delta": {"reasoning": text}} if chat else {"text": text}
        stream.take([orjson.dumps({"choices": [choice]})], at_ms * 1_000_000)
    if final is not None:
        stream.take([orjson.dumps({"choices": [], "usage": {"completion_tokens": final}})], 10**9)
    stream.take([b"[DONE]"], 10**9)
    stream.finish()
    record.end("ok", 10**9)
    return record


def counted(record: RequestRecord) -> RequestRecord:
    count_tokens([record], WordEnds())
    return record


def test_tokens_are_counted_and_given_to_the_chunks_that_bring_their_last_character() -> None:
    record = counted(answer((50, "one two thr"), (70, "ee four"), (90, " five")))

    assert (record.output_tokens, record.client_output_tokens) == (None, 5)
    assert list(record.chunk_tokens) == [2, 2, 1]
    assert record.tpot_s == pytest.approx(0.040 / 3)
    assert record.note == COUNTED_HERE
    assert record.texts is None


def test_thoughts_count_too() -> None:
    assert counted(answer((50, "one two"), (60, " three"), chat=True)).client_output_tokens == 3


def test_the_servers_own_count_stands_and_the_chunks_follow_only_if_they_agree() -> None:
    agreed = counted(answer((50, "one two"), (60, " three four"), final=4))
    other = counted(answer((50, "one two"), (60, " three four"), final=7))

    assert (agreed.output_tokens, list(agreed.chunk_tokens)) == (4, [2, 2])
    assert (other.output_tokens, other.tokens_known, other.tpot_s) == (7, False, None)


def test_events_of_one_read_are_one_chunk_here_too() -> None:
    record = counted(answer((50, "one"), (50, " two three four five"), (60, " six")))

    assert list(record.chunk_tokens) == [5, 1]


def test_a_failed_answer_is_left_alone() -> None:
    record = RequestRecord(0, max_tokens=8, released_ns=0)
    record.texts = ["one"]
    record.end("error", 1, "gone")

    assert counted(record).client_output_tokens is None
