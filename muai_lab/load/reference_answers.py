"""The bytes of the reference server's answers, rendered once for each shape of answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

MODEL = "reference"
WORDS = (" one", " two", " three", " four", " five", " six", " seven", " eight")
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_STREAM_TAIL = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ResponseShape:
    """Everything that the bytes of a response depend on; equal shapes share their rendered bytes."""

    chat: bool
    tokens: int
    prompt_tokens: int
    include_usage: bool
    continuous_usage: bool


def usage_of(shape: ResponseShape, completed: int) -> dict[str, int]:
    return {
        "prompt_tokens": shape.prompt_tokens,
        "completion_tokens": completed,
        "total_tokens": shape.prompt_tokens + completed,
    }


def choice_of(shape: ResponseShape, text: str, finish_reason: str | None, *, role: bool = False) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
    if shape.chat:
        choice["delta"] = {"role": "assistant", "content": text} if role else {"content": text}
    else:
        choice["text"] = text
    return choice


def _event(shape: ResponseShape, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
    """Return one SSE event in an HTTP chunk of its own, as streaming servers send them."""
    payload: dict[str, Any] = {
        "id": "chatcmpl-reference" if shape.chat else "cmpl-reference",
        "object": "chat.completion.chunk" if shape.chat else "text_completion",
        "created": 0,
        "model": MODEL,
        "choices": choices,
    }
    if usage is not None:
        payload["usage"] = usage
    return http_chunk(b"data: " + orjson.dumps(payload) + b"\n\n")


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@lru_cache(maxsize=4096)
def token_chunks(shape: ResponseShape) -> tuple[bytes, ...]:
    """Return the rendered bytes per token; those of the first and the last include the stream's beginning and end."""
    chunks = []
    for k in range(shape.tokens):
        usage = usage_of(shape, k + 1) if shape.continuous_usage else None
        finish_reason = "length" if k == shape.tokens - 1 else None
        chunks.append(_event(shape, [choice_of(shape, WORDS[k % len(WORDS)], finish_reason)], usage))
    opening = _STREAM_HEAD
    if shape.chat:
        role_usage = usage_of(shape, 0) if shape.continuous_usage else None
        opening += _event(shape, [choice_of(shape, "", None, role=True)], role_usage)
    closing = _event(shape, [], usage_of(shape, shape.tokens)) if shape.include_usage else b""
    closing += http_chunk(b"data: [DONE]\n\n") + _STREAM_TAIL
    chunks[0] = opening + chunks[0]
    chunks[-1] += closing
    return tuple(chunks)


@lru_cache(maxsize=4096)
def whole_stream(shape: ResponseShape) -> bytes:
    return b"".join(token_chunks(shape))
