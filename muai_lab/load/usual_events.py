"""Types of the events that nearly every stream consists of: decoding one is also the check that it is usual.

A usual event carries a piece of text, perhaps a count of tokens or the end, and no other field with a meaning. A field
of type None must be absent or null: with any other value the event has a further meaning, and is not decoded here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import DecodeError, Meta, Struct
from msgspec.json import Decoder

from muai_lab.load.foreign_values import COUNT_LIMIT

_Text = Annotated[str, Meta(min_length=1)]


class _Delta(Struct, gc=False):
    content: _Text


class _Choice(Struct, gc=False):
    index: int
    text: _Text | None = None
    delta: _Delta | None = None
    finish_reason: Literal["stop", "length"] | None = None
    error: None = None
    usage: None = None


class _Usage(Struct, gc=False):
    completion_tokens: Annotated[int, Meta(ge=0, le=COUNT_LIMIT)]


class UsualEvent(Struct, gc=False):
    """One event of `/v1/completions` or `/v1/chat/completions` with text, of one choice."""

    choices: tuple[_Choice]
    usage: _Usage | None = None
    error: None = None
    x_groq: None = None
    timings: None = None

    @property
    def text(self) -> str:
        """The piece of text; empty if the choice has none."""
        (choice,) = self.choices
        return (choice.text or "") if choice.delta is None else choice.delta.content


decode_usual = Decoder(UsualEvent).decode
"""Decode one payload; raises `NotUsual`."""

NotUsual = DecodeError
