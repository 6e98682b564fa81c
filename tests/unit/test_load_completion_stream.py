"""From the events of a completion stream to a record."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from muai_lab.load.completion_stream import CompletionStream, StreamError, error_message
from muai_lab.request_record import RequestRecord


def text(content: str, completed: int | None = None, finish_reason: str | None = None) -> bytes:
    event: dict[str, Any] = {"choices": [{"index": 0, "text": content, "finish_reason": finish_reason}]}
    return _with_usage(event, completed)


def delta(content: dict[str, Any], completed: int | None = None, finish_reason: str | None = None) -> bytes:
    event: dict[str, Any] = {"choices": [{"index": 0, "delta": content, "finish_reason": finish_reason}]}
    return _with_usage(event, completed)


def usage(completed: int, **more: Any) -> bytes:
    return orjson.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": completed, **more}})


def _with_usage(event: dict[str, Any], completed: int | None) -> bytes:
    if completed is not None:
        event["usage"] = {"prompt_tokens": 7, "completion_tokens": completed}
    return orjson.dumps(event)


def read(*payloads: bytes) -> RequestRecord:
    """Events arrive at 100, 200, 300, ... ns."""
    record = RequestRecord(0, max_tokens=16)
    stream = CompletionStream(record)
    for number, payload in enumerate(payloads, start=1):
        stream.take([payload], number * 100)
    stream.finish()
    return record


def test_tokens_per_chunk_come_from_the_usage_of_each_chunk() -> None:
    record = read(text("a", 1), text("bcd", 4), text("e", 5, "length"), usage(5), b"[DONE]")

    assert list(record.chunk_t_ns) == [100, 200, 300]
    assert list(record.chunk_tokens) == [1, 3, 1]
    assert (record.prompt_tokens, record.output_tokens, record.finish_reason) == (7, 5, "length")
    assert (record.first_content_ns, record.last_token_ns) == (100, 300)
    assert record.tokens_known


def test_role_and_usage_chunks_are_no_content_and_a_growing_count_is_an_arrival() -> None:
    record = read(
        delta({"role": "assistant", "content": ""}, 0),
        delta({"content": "a"}, 1),
        delta({"content": ""}, 2),
        delta({"content": "bc"}, 3),
        delta({}, 3, "stop"),
        usage(3),
        b"[DONE]",
    )

    assert list(record.chunk_t_ns) == [200, 300, 400]
    assert list(record.chunk_tokens) == [1, 1, 1]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_of_a_reasoning_model_are_content(field: str) -> None:
    record = read(delta({"content": None, field: "hm"}, 1), delta({"content": "yes"}, 2, "stop"), b"[DONE]")

    assert list(record.chunk_tokens) == [1, 1]


def test_without_usage_per_chunk_one_chunk_is_one_token_if_the_final_count_agrees() -> None:
    record = read(text("a"), text("b"), text("c", None, "length"), usage(3), b"[DONE]")

    assert list(record.chunk_tokens) == [1, 1, 1]
    assert record.tokens_known


def test_without_usage_per_chunk_tokens_are_unknown_if_the_final_count_disagrees() -> None:
    record = read(text("a"), text("bc", None, "length"), usage(3), b"[DONE]")

    assert record.output_tokens == 3
    assert not record.tokens_known


def test_without_any_usage_nothing_is_known_but_the_times() -> None:
    record = read(text("a"), text("b", None, "stop"), b"[DONE]")

    assert record.output_tokens is None
    assert record.client_output_tokens is None
    assert not record.tokens_known
    assert record.last_token_ns == 200


def test_cached_prompt_tokens_are_taken_where_the_server_tells_them() -> None:
    record = read(text("a", 1, "stop"), usage(1, prompt_tokens_details={"cached_tokens": 4}), b"[DONE]")

    assert record.cached_prompt_tokens == 4
    assert read(text("a", 1, "stop"), usage(1), b"[DONE]").cached_prompt_tokens is None


def test_our_server_tells_where_the_time_until_the_first_token_went() -> None:
    told = usage(1)[:-1] + b',"x_muai":{"queue_ms":12.5,"prefill_ms":3.25}}'

    record = read(text("a", 1, "stop"), told, b"[DONE]")

    assert (record.server_queue_ns, record.server_prefill_ns) == (12_500_000, 3_250_000)
    assert read(text("a", 1, "stop"), usage(1), b"[DONE]").server_queue_ns is None


@pytest.mark.parametrize(
    "payloads",
    [
        pytest.param((text("a", 1, "stop"),), id="finish_reason without [DONE]"),
        pytest.param((text("a", 1), b"[DONE]"), id="[DONE] without finish_reason"),
    ],
)
def test_either_sign_of_an_end_is_enough(payloads: tuple[bytes, ...]) -> None:
    assert read(*payloads).output_tokens == 1


@pytest.mark.parametrize(
    ("payloads", "message"),
    [
        pytest.param((text("a", 1), text("b", 2)), "broke off after 2 events", id="half a stream"),
        pytest.param((), "no event", id="nothing"),
        pytest.param((b"<html>oops</html>",), "event 1 of the stream is not a completion: <html>", id="HTML"),
        pytest.param((b"[1, 2]",), "not a completion", id="a list"),
        pytest.param((b"3",), "not a completion", id="a number"),
        pytest.param((b'{"choices": {"a": 1}}',), "not a completion", id="choices of another shape"),
        pytest.param((text("a", 1), b'{"error": {"message": "engine died"}}'), "engine died", id="error event"),
    ],
)
def test_a_broken_stream_says_what_is_wrong(payloads: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(StreamError, match=message):
        read(*payloads)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "no such model", "code": 404}}, "no such model"),
        ({"error": "plain"}, "plain"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"message": "overloaded", "object": "error"}, "overloaded"),
        ("text", "text"),
    ],
)
def test_the_message_is_found_in_the_shapes_that_servers_use(body: Any, message: str) -> None:
    assert error_message(body) == message
