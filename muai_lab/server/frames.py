"""The bytes of an answer: server-sent events of a stream, and the document of a whole answer.

A stream sends one event per token. So the constant parts of its events are encoded once per choice, and an event is a
concatenation around the JSON form of its text.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"


class Usage(enum.Enum):
    """The events of a stream that report token counts: none; a last event; or (vLLM's extension) every event."""

    NONE = "none"
    FINAL = "final"
    CONTINUOUS = "continuous"


@dataclass(frozen=True, slots=True)
class AnswerIdentity:
    """The fields that every event of one answer repeats."""

    id: str
    model: str
    created: int


@dataclass(frozen=True, slots=True)
class Result:
    """One finished choice.

    cached_tokens: prompt tokens served from the prefix cache, None without a cache. token_ids: ids of the output, None
    unless the request asks for them.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None
    token_ids: Sequence[int] | None = None


def usage_document(prompt_tokens: int, output_tokens: int, cached_tokens: int | None) -> dict[str, Any]:
    """Return OpenAI's usage object; the detail about the cache only if there is a cache."""
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
    }
    if cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return usage


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """The differences between the answers of the two endpoints.

    Attributes:
        id_prefix: Beginning of an answer's id.
        chunk_object: `object` of an event.
        whole_object: `object` of an answer that is not streamed.
        before_text: Bytes before the JSON text in an event's choice.
        after_text: Bytes after it.
        opening: Choice of the event that opens a stream, None if there is none.
        ending: Choice of the separate event with the finish reason; None if the event with the last text has it.
        content: The part of a choice that holds the text, for an answer that is not streamed.
    """

    id_prefix: str
    chunk_object: str
    whole_object: str
    before_text: bytes
    after_text: bytes
    opening: bytes | None
    ending: bytes | None
    content: Callable[[str], dict[str, Any]]


COMPLETION = AnswerFormat(
    id_prefix="cmpl-",
    chunk_object="text_completion",
    whole_object="text_completion",
    before_text=b'"text":',
    after_text=b"",
    opening=None,
    ending=None,
    content=lambda text: {"text": text},
)
CHAT = AnswerFormat(
    id_prefix="chatcmpl-",
    chunk_object="chat.completion.chunk",
    whole_object="chat.completion",
    before_text=b'"delta":{"content":',
    after_text=b"}",
    opening=b'"delta":{"role":"assistant","content":""}',
    ending=b'"delta":{}',
    content=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
)


class Frames:
    """The events of one choice of a stream.

    prompt_tokens: of this choice's prompt; with `Usage.CONTINUOUS` every event reports the usage of its own choice.
    """

    def __init__(
        self, shape: AnswerFormat, answer: AnswerIdentity, index: int, prompt_tokens: int, usage: Usage
    ) -> None:
        self._shape = shape
        self._start = _head(shape, answer) + b'[{"index":%d,' % index
        self._head = self._start + shape.before_text
        self._middle = shape.after_text + _reason(None)
        self._prompt_tokens = prompt_tokens
        # None: the end of an event changes with the tokens so far.
        self._tail = {Usage.NONE: b"}\n\n", Usage.FINAL: b',"usage":null}\n\n', Usage.CONTINUOUS: None}[usage]
        self._counted = b',"usage":{"prompt_tokens":%d,"completion_tokens":%%d,"total_tokens":%%d}}\n\n' % prompt_tokens

    def opening(self) -> bytes:
        """Return the bytes that are sent before all else of the choice; may be empty."""
        opening = self._shape.opening
        return self._start + opening + _reason(None) + self._end(0) if opening else b""

    def text(self, text: str, output_tokens: int) -> bytes:
        """Return the event that carries `text`; output_tokens: tokens of this choice so far."""
        return self._head + orjson.dumps(text) + self._middle + (self._tail or self._end(output_tokens))

    def ending(self, text: str, reason: str, output_tokens: int) -> bytes:
        """Return the event or events that carry the last text and the finish reason."""
        if self._shape.ending is None:
            choice = self._head + orjson.dumps(text) + self._shape.after_text
            return choice + _reason(reason) + self._end(output_tokens)
        last = self._start + self._shape.ending + _reason(reason) + self._end(output_tokens)
        return self.text(text, output_tokens) + last if text else last

    def _end(self, output_tokens: int) -> bytes:
        return self._tail or self._counted % (output_tokens, self._prompt_tokens + output_tokens)


def whole(shape: AnswerFormat, answer: AnswerIdentity, results: Sequence[Result], usage: dict[str, Any]) -> bytes:
    """Return the document of an answer that is not streamed."""
    choices = [
        {
            "index": index,
            **shape.content(result.text),
            "logprobs": None,
            "finish_reason": result.finish_reason,
            **({} if result.token_ids is None else {"token_ids": result.token_ids}),
        }
        for index, result in enumerate(results)
    ]
    fields = {"id": answer.id, "object": shape.whole_object, "created": answer.created, "model": answer.model}
    return orjson.dumps({**fields, "choices": choices, "usage": usage})


def usage_event(
    shape: AnswerFormat, answer: AnswerIdentity, usage: dict[str, Any], phases: dict[str, float] | None = None
) -> bytes:
    """Return the last event before `[DONE]` of a stream that was asked for usage.

    phases: milliseconds of the phases until the first token, as the extension `x_muai`; None if unknown.
    """
    extension = b"" if phases is None else b',"x_muai":' + orjson.dumps(phases)
    return _head(shape, answer) + b'[],"usage":' + orjson.dumps(usage) + extension + b"}\n\n"


def error_event(document: dict[str, Any]) -> bytes:
    """Return the event that ends a stream which failed after its first event."""
    return b"data: " + orjson.dumps(document) + b"\n\n"


def _head(shape: AnswerFormat, answer: AnswerIdentity) -> bytes:
    fields = {"id": answer.id, "object": shape.chunk_object, "created": answer.created, "model": answer.model}
    return b"data: " + orjson.dumps(fields)[:-1] + b',"choices":'


def _reason(reason: str | None) -> bytes:
    return b',"logprobs":null,"finish_reason":' + orjson.dumps(reason) + b"}]"
