"""Made-up requests: prompts of exact token counts for the model's tokenizer, outputs of drawn lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from muai_lab.errors import RunError
from muai_lab.settings.lab import SyntheticWorkload
from muai_lab.workload.lengths import draw_lengths
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.schedule import ScheduledRequest

_TRIES = 4


class PromptTokenizer(Protocol):
    """What making up prompts needs of a tokenizer; `muai_lab.models.tokenizer.ModelTokenizer` has it."""

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the answer."""

    def prompt_of(self, n_tokens: int, rng: np.random.Generator) -> tuple[str, list[int]]:
        """A made-up text of exactly `n_tokens` tokens, and these tokens."""


def draw_requests(
    workload: SyntheticWorkload, count: int, streams: RandomStreams, tokenizer: PromptTokenizer
) -> list[ScheduledRequest]:
    """`count` requests without times. Raises RunError when a prompt is shorter than the chat template alone."""
    prompt_lengths = draw_lengths(workload.prompt_tokens, count, streams.stream("prompt lengths"))
    output_lengths = draw_lengths(workload.output_tokens, count, streams.stream("output lengths"))
    seeds = streams.stream("sampling seeds").integers(2**31, size=count)
    words = streams.stream("prompts")
    template_tokens = len(tokenizer.encode_chat([_user("")])) if workload.api == "chat" else 0
    requests = []
    for index in range(count):
        wanted = int(prompt_lengths[index])
        if workload.api == "chat":
            prompt, tokens = _chat_prompt(wanted, template_tokens, tokenizer, words)
        else:
            prompt, tokens = tokenizer.prompt_of(wanted, words)[0], wanted
        requests.append(
            ScheduledRequest(
                index=index,
                intended_s=None,
                prompt=prompt,
                prompt_ids=None,
                prompt_tokens=tokens,
                max_tokens=int(output_lengths[index]),
                seed=int(seeds[index]),
            )
        )
    return requests


def _chat_prompt(
    wanted: int, template_tokens: int, tokenizer: PromptTokenizer, rng: np.random.Generator
) -> tuple[str, int]:
    """A user message that makes a conversation of `wanted` tokens, template included; and its real count.

    A template may trim the message or merge with its ends, so the count is checked and the length corrected; where
    that does not settle, the count that was reached is the one that is recorded.
    """
    length = wanted - template_tokens
    if length < 1:
        raise RunError(
            f"workload.prompt_tokens asks for a prompt of {wanted} tokens, but the chat template alone takes "
            f"{template_tokens}; set its lowest length to {template_tokens + 1} or more, or workload.api=completions"
        )
    for _ in range(_TRIES):
        text, _ids = tokenizer.prompt_of(length, rng)
        reached = len(tokenizer.encode_chat([_user(text)]))
        if reached == wanted or length + wanted - reached < 1:
            break
        length += wanted - reached
    return text, reached


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}
