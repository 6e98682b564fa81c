"""Server-sent events, however the bytes are cut."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from muai_lab.load.sse import SseParser


def payloads(*chunks: bytes) -> list[bytes]:
    parser = SseParser()
    return [payload for chunk in chunks for payload in parser.feed(chunk)]


def reference(stream: bytes) -> list[bytes]:
    """The standard's algorithm, line by line over the whole stream; slow and plain."""
    found, data = [], []
    lines = re.split(rb"\r\n|\r|\n", stream)
    for line in lines[:-1]:  # what follows the last line end is not a line yet
        field, _, value = line.partition(b":")
        if line == b"":
            if data:
                found.append(b"\n".join(data))
            data = []
        elif field == b"data":
            data.append(value.removeprefix(b" "))
    return found


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        pytest.param(b'data: {"a":1}\n\ndata: [DONE]\n\n', [b'{"a":1}', b"[DONE]"], id="whole events"),
        pytest.param(b"data: one\r\n\r\ndata: two\r\n\r\n", [b"one", b"two"], id="CRLF"),
        pytest.param(b"data: one\r\rdata: two\r\r", [b"one", b"two"], id="CR alone"),
        pytest.param(b": keep-alive\n\ndata: one\n\n: again\n\n", [b"one"], id="comments"),
        pytest.param(b"data: first\ndata: second\n\n", [b"first\nsecond"], id="data over two lines"),
        pytest.param(b"event: delta\nid: 7\nretry: 10\ndata: one\n\n", [b"one"], id="other fields"),
        pytest.param(b"data:tight\n\ndata:  two spaces\n\n", [b"tight", b" two spaces"], id="one space is taken off"),
        pytest.param(b"data\n\ndata: x\n\n", [b"", b"x"], id="data without a colon"),
        pytest.param(b"database: x\n\ndata: y\n\n", [b"y"], id="a field that only begins like data"),
        pytest.param(b"\n\n\ndata: one\n\n\n\n", [b"one"], id="extra empty lines"),
        pytest.param(b"data: lost", [], id="an event that never ends"),
    ],
)
def test_events_of_a_stream(stream: bytes, expected: list[bytes]) -> None:
    assert payloads(stream) == expected
    assert payloads(*[stream[i : i + 1] for i in range(len(stream))]) == expected


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("stream", [b"data: one\n\ndata: two\n\n", b"data: one\r\n\r\ndata: two\r\n\r\n"])
def test_a_byte_order_mark_belongs_to_no_event(mark: bytes, stream: bytes) -> None:
    marked = mark + stream

    assert payloads(marked) == [b"one", b"two"]
    assert payloads(*[marked[i : i + 1] for i in range(len(marked))]) == [b"one", b"two"]


@pytest.mark.parametrize("cut", [b"data: two", b"data: two\n", b"data: two\r\n"])
def test_the_last_event_may_lack_its_end(cut: bytes) -> None:
    parser = SseParser()

    assert parser.feed(b"data: one\n\n" + cut) == [b"one"]
    assert parser.rest() == b"two"
    assert parser.rest() is None


def test_an_event_cut_in_two_comes_with_its_second_half() -> None:
    parser = SseParser()
    assert parser.feed(b"data: one\n\ndata: t") == [b"one"]
    assert parser.feed(b"wo\n\n") == [b"two"]


_PIECES = st.sampled_from(
    [
        b"data: ",
        b"data:",
        b"data",
        b": comment",
        b"event: x",
        b"\n",
        b"\r\n",
        b"\r",
        b"\n\n",
        b'{"a": 1}',
        b" ",
        b":",
        b"x",
    ]
)


@given(st.lists(_PIECES, max_size=30).map(b"".join), st.lists(st.integers(0, 200), max_size=8))
@example(b"data: a\r\n\r\ndata: b\n\n", [9, 10, 11])
@example(b"data: a\n\n\n\ndata: b\n\n", [])
def test_any_stream_cut_anywhere_reads_as_the_standard_says(stream: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[start:end] for start, end in pairwise(edges)]

    assert payloads(*chunks) == reference(stream)
