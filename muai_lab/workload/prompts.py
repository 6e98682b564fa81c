"""Made-up prompts of exact token counts, and their room in a model's context."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from muai_lab.errors import RunError
from muai_lab.settings.workload import Api
from muai_lab.workload.reading import counted
from muai_lab.workload.schedule import Message, conversation_text, message_text

_TRIES = 4


class PromptTokenizer(Protocol):
    """The tokenizer of a prompt maker, such as `muai_lab.models.tokenizer.ModelTokenizer`."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a plain text."""

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the token ids of a conversation, ready for the answer."""

    def prompt_of(self, n_tokens: int, rng: np.random.Generator) -> tuple[str, list[int]]:
        """Return a made-up text of exactly `n_tokens` tokens, and these tokens."""


@dataclass
class Context:
    """The model's context, and counts of prompts, outputs and turns that did not fit.

    tokens: prompt and output together, None if unknown. A prompt that does not fit is cut, as is an output that leaves
    no room for any prompt.
    """

    tokens: int | None = None
    prompts_cut: int = 0
    outputs_cut: int = 0
    turns_dropped: int = 0
    prompts_dropped: int = 0

    def fit(self, prompt: int, output: int, least_prompt: int = 1) -> tuple[int, int]:
        """Return the lengths of prompt and output that fit; least_prompt: shortest useful prompt."""
        if self.tokens is None or prompt + output <= self.tokens:
            return prompt, output
        fitting = max(1, min(output, self.tokens - least_prompt))
        self.outputs_cut += fitting < output
        room = max(least_prompt, self.tokens - fitting)
        self.prompts_cut += room < prompt
        return min(prompt, room), fitting

    def holds(self, prompt: int, output: int) -> bool:
        """True if prompt and output fit uncut."""
        return self.tokens is None or prompt + output <= self.tokens

    def notes(self) -> tuple[str, ...]:
        """Return notes on cut and left-out prompts, outputs and turns."""
        context = f"the model's context of {self.tokens or 0:,} tokens"
        cut = _listed((self.prompts_cut, "prompt"), (self.outputs_cut, "output"))
        dropped = _listed((self.turns_dropped, "turn"), (self.prompts_dropped, "prompt"))
        notes = (cut and f"cut to fit {context}: {cut}", dropped and f"left out, not to exceed {context}: {dropped}")
        return tuple(note for note in notes if note)


def _listed(*counts: tuple[int, str]) -> str:
    return ", ".join(counted(count, noun) for count, noun in counts if count)


@dataclass
class PromptMaker:
    """Makes prompts for one workload: plain texts, or user messages whose conversation has the wanted length."""

    tokenizer: PromptTokenizer
    api: Api
    context: Context = field(default_factory=Context)

    def __post_init__(self) -> None:
        self.template_tokens = len(self.tokenizer.encode_chat([user("")])) if self.api == "chat" else 0

    def text(self, n_tokens: int, rng: np.random.Generator) -> str:
        """Return a text of exactly `n_tokens` tokens, without a template; empty for 0."""
        return self.tokenizer.prompt_of(n_tokens, rng)[0] if n_tokens > 0 else ""

    def prompt(
        self, wanted: int, rng: np.random.Generator, *, head: str = "", head_tokens: int | None = None
    ) -> tuple[str, int]:
        """Return a prompt of `wanted` tokens, chat template included, that begins with `head`, and its real count.

        A template may trim the message or merge with its ends, and so may the head. So the count is checked and the
        length corrected; if that does not converge, the reached count is recorded. head_tokens: count of the head, if
        the caller knows it. Raises RunError if the template alone is longer.
        """
        if not head and self.api != "chat":
            return self.text(wanted, rng), wanted
        around = (head_tokens or self.count(head)) if head else self.template_tokens
        length = wanted - around
        if length < 1:
            raise RunError(
                f"workload.prompt_tokens asks for a prompt of {wanted} tokens, but the chat template alone takes "
                f"{around}; set its lowest length to {around + 1} or more, or workload.api=completions"
            )
        for _ in range(_TRIES):
            text = head + self.text(length, rng)
            reached = self.count(text)
            if reached == wanted or length + wanted - reached < 1:
                break
            length += wanted - reached
        return text, reached

    def count(self, text: str) -> int:
        """Return the number of tokens of a prompt, chat template included."""
        return len(self.tokenizer.encode_chat([user(text)]) if self.api == "chat" else self.tokenizer.encode(text))

    def count_conversation(self, messages: Sequence[Message]) -> int:
        """Return the number of tokens of a conversation in the form in which it is sent."""
        if self.api == "chat":
            return len(self.tokenizer.encode_chat([plain(message) for message in messages]))
        return len(self.tokenizer.encode(conversation_text(messages)))

    def between_turns(self) -> int:
        """Return the tokens that the template adds with a further turn, besides the answer and the new message."""
        one = [user("")]
        two = [user(""), {"role": "assistant", "content": ""}, user("")]
        return max(0, self.count_conversation(two) - self.count_conversation(one))


def plain(message: Message) -> dict[str, str]:
    """Return role and text of a message for a chat template; tool calls are written as JSON."""
    text = message_text(message)
    if calls := message.get("tool_calls"):
        text += json.dumps(calls, ensure_ascii=False)
    return {"role": str(message.get("role", "user")), "content": text}


def user(content: str) -> dict[str, str]:
    """Return a message of the user."""
    return {"role": "user", "content": content}
