"""Whole responses with status 200, from their bytes to the record."""

from __future__ import annotations

import pytest

from muai_lab.load.completion_stream import StreamError
from muai_lab.load.streamed_answer import StreamedAnswer
from muai_lab.request_record import RequestRecord

TOKEN = b'data: {"choices":[{"index":0,"text":"tok"}]}\n\n'
LAST = (
    b'data: {"choices":[{"index":0,"text":"","finish_reason":"length"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2}}'
)


def answered(*reads: bytes, content_type: str = "text/event-stream") -> RequestRecord:
    record = RequestRecord(0, max_tokens=2)
    answer = StreamedAnswer(record)
    answer.head(200, content_type, "")
    for at_ns, data in enumerate(reads, start=1):
        answer.body(data, at_ns)
    answer.end(len(reads) + 1)
    return record


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\n\ndata: [DONE]", b"\n\ndata: [DO"])
def test_the_last_event_may_lack_its_line_ends(end: bytes) -> None:
    record = answered(TOKEN, TOKEN, LAST + end)

    assert (record.status, record.output_tokens, list(record.chunk_t_ns)) == ("ok", 2, [1, 2])


@pytest.mark.parametrize("cut", [TOKEN + TOKEN[:20], TOKEN + TOKEN.rstrip()])
def test_a_stream_that_breaks_off_is_no_answer(cut: bytes) -> None:
    with pytest.raises(StreamError, match="broke off"):
        answered(cut)


def test_a_byte_order_mark_does_not_cost_the_first_token() -> None:
    record = answered(b"\xef\xbb\xbf" + TOKEN, TOKEN, LAST)

    assert list(record.chunk_t_ns) == [1, 2]


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (b'{"error": {"message": "no credit left"}}', "application/json", "application/json .*no credit left"),
        (b'{"choices": [{"text": "whole"}]}', "application/json", "application/json instead .*whole"),
        (b"<html>\n<h1>Please log in</h1>", "text/html", "Please log in"),
        (b"", "", "content type none"),
    ],
)
def test_an_answer_that_is_no_stream_is_quoted(body: bytes, content_type: str, said: str) -> None:
    with pytest.raises(StreamError, match=said):
        answered(body, content_type=content_type)


def test_a_last_token_without_a_line_end_has_the_time_of_its_read() -> None:
    last = LAST.replace(b'"text":""', b'"text":"tok"')

    assert list(answered(TOKEN, last).chunk_t_ns) == [1, 2]
