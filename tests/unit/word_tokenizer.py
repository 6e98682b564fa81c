"""A tokenizer whose counts can be checked by eye: a token is a word, a line end is one too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TEMPLATE_TOKENS = 5  # around each message but the last word of the answer to come


class WordTokenizer:
    """Every word and every line end is a token; a message in a conversation has five more around it."""

    @property
    def ordinary_token_ids(self) -> list[int]:
        return list(range(1000))

    def encode(self, text: str) -> list[int]:
        return [0] * len(text.replace("\n", " ↵ ").split())

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return [0] * sum(TEMPLATE_TOKENS + len(self.encode(message["content"])) for message in messages)

    def prompt_of(self, n_tokens: int, rng: np.random.Generator) -> tuple[str, list[int]]:
        ids = rng.integers(26, size=n_tokens).tolist()
        return " ".join("abcdefghijklmnopqrstuvwxyz"[number] for number in ids), ids
