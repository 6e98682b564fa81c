"""The meaning of an OpenAI completion stream: from SSE payloads to the record of a request."""

from __future__ import annotations

from typing import Any

import orjson

from muai_lab.load.records import RequestRecord

# Fields of a chat delta that carry generated tokens; reasoning models stream their thoughts in the latter ones.
_DELTA_CONTENT = ("content", "reasoning_content", "reasoning", "tool_calls")


class StreamError(Exception):
    """The stream is not what an OpenAI-compatible server sends, or carries the server's error; str() says what."""


class CompletionStream:
    """Reads the events of one response into its record; `/v1/completions` and `/v1/chat/completions` alike.

    How many tokens a chunk carries is the difference between successive `usage.completion_tokens` (vLLM's
    `continuous_usage_stats`). Where chunks have no usage, each counts as one token, until the final usage disagrees:
    then the tokens per chunk are unknown. Without any usage the number of chunks is the client's count of the output.
    """

    __slots__ = ("_counted", "_done", "_events", "_record", "_uncounted", "_usage")

    def __init__(self, record: RequestRecord) -> None:
        self._record = record
        self._usage: dict[str, Any] | None = None
        self._counted = 0  # completion tokens that chunks in the record account for
        self._uncounted = False  # some content chunk came without usage
        self._events = 0
        self._done = False

    def take(self, payload: bytes, at_ns: int) -> None:
        """Take in one event that arrived at `at_ns`; raises StreamError."""
        if payload == b"[DONE]":
            self._done = True
            return
        self._events += 1
        try:
            event = orjson.loads(payload)
            choices = event.get("choices")
            usage = event.get("usage")
            if usage:
                self._usage = usage
            if choices:
                self._take_choice(choices[0], usage, at_ns)
            elif phases := event.get("x_muai"):
                self._record.server_queue_ns = round(phases["queue_ms"] * 1e6)
                self._record.server_prefill_ns = round(phases["prefill_ms"] * 1e6)
            elif "error" in event:
                raise StreamError(f"the server ended the stream with an error: {error_message(event)}")
        except (orjson.JSONDecodeError, AttributeError, TypeError, LookupError) as error:
            raise StreamError(f"event {self._events} of the stream is not a completion: {_excerpt(payload)}") from error

    def _take_choice(self, choice: dict[str, Any], usage: dict[str, Any] | None, at_ns: int) -> None:
        record = self._record
        if (delta := choice.get("delta")) is None:
            text = content = choice.get("text")
        else:
            text = delta.get("content")
            content = text or any(delta.get(name) for name in _DELTA_CONTENT)
        if content:
            if record.answer is not None and text:
                record.answer.append(text)
            if usage:
                completed = usage["completion_tokens"]
                tokens = completed - self._counted
                self._counted = completed
            else:
                tokens = 1
                self._uncounted = True
            record.chunk_t_ns.append(at_ns)
            record.chunk_tokens.append(tokens)
        if finish_reason := choice.get("finish_reason"):
            record.finish_reason = finish_reason

    def finish(self) -> None:
        """The response has ended; fills in the token counts. Raises StreamError for half a stream."""
        record = self._record
        if self._usage is not None:
            record.prompt_tokens = self._usage.get("prompt_tokens")
            record.output_tokens = self._usage.get("completion_tokens")
            record.cached_prompt_tokens = (self._usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        else:
            record.client_output_tokens = len(record.chunk_tokens) or None
        if self._uncounted and record.output_tokens != len(record.chunk_tokens):
            record.tokens_known = False
        if not self._events and not self._done:
            raise StreamError("the answer holds no event of a stream")
        if not self._done and record.finish_reason is None:
            raise StreamError(f"the stream broke off after {self._events} events: neither finish_reason nor [DONE]")


def error_message(body: Any) -> str:
    """The message inside OpenAI's error object (`{"error": {"message": ...}}`) or one of its common variants."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or orjson.dumps(error).decode()
    return str(error)


def _excerpt(payload: bytes) -> str:
    return payload[:80].decode("utf-8", "replace")
