"""Text to token ids and back, for every engine and for the load generator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from muai_lab.errors import ModelError
from muai_lab.models.registry import ModelSource

if TYPE_CHECKING:
    import numpy as np

_WORD_STARTS = ("Ġ", "▁")  # how byte-level and SentencePiece vocabularies write the space before a word
_TRIES = 64


class ModelTokenizer:
    """The tokenizer that belongs to a model; safe to share between threads."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: a `transformers` tokenizer with a Rust backend."""
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self.vocab_size: int = len(tokenizer)
        end = tokenizer.eos_token_id
        self.eos_token_ids: frozenset[int] = frozenset() if end is None else frozenset({end})

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with the special tokens that the model expects around a prompt."""
        ids: list[int] = self._backend.encode(text).ids
        return ids

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation (`role`, `content`), ready for the assistant's answer.

        A model without a chat template (a T5) gets the contents joined by newlines, without the roles.
        """
        if self._tokenizer.chat_template is None:
            return self.encode("\n".join(message["content"] for message in messages))
        text = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids  # the template writes its own
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens; bytes that form no character become U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text

    def stream(self) -> StreamDecoder:
        """A decoder for one sequence that arrives token by token."""
        return StreamDecoder(self._backend)

    @cached_property
    def ordinary_token_ids(self) -> list[int]:
        """Ids of tokens that are one lower- or upper-case ASCII word with the space before it, in ascending order.

        Each of them alone encodes to itself, so texts made of them keep their number of tokens.
        """
        words = {}
        for token, index in self._backend.get_vocab(with_added_tokens=False).items():
            word = token[1:]
            if token.startswith(_WORD_STARTS) and len(word) > 1 and word.isascii() and word.isalpha():
                words[index] = f" {word}"
        ids = sorted(words)
        encoded = self._backend.encode_batch([words[index] for index in ids], add_special_tokens=False)
        return [index for index, found in zip(ids, encoded, strict=True) if found.ids == [index]]

    def prompt_of(self, n_tokens: int, rng: np.random.Generator) -> tuple[str, list[int]]:
        """A made-up text that `encode` turns into exactly `n_tokens` ids, and these ids.

        The same generator state gives the same text. Raises ModelError when the tokenizer cannot make such a text:
        fewer tokens than it adds around every prompt, or no ordinary words.
        """
        around = len(self.encode(""))
        words = self.ordinary_token_ids
        wanted = n_tokens - around
        if wanted < 1 or not words:
            why = "it has no ordinary words" if not words else f"every prompt has at least {around + 1}"
            raise ModelError(f"the tokenizer cannot make a prompt of {n_tokens} tokens: {why}")
        chosen = [words[index] for index in rng.integers(len(words), size=wanted)]
        for _ in range(_TRIES):
            text = self.decode(chosen)
            ids = self.encode(text)
            surplus = len(ids) - n_tokens
            if surplus == 0:
                return text, ids
            # Neighbours merged or a word fell apart: change the tail, where it costs nothing to look again.
            keep = max(len(chosen) - max(surplus, 0) - 1, 0)
            more = len(chosen) - surplus - keep
            chosen = chosen[:keep] + [words[index] for index in rng.integers(len(words), size=max(more, 1))]
        raise ModelError(f"the tokenizer made no text of exactly {n_tokens} tokens in {_TRIES} tries")


class StreamDecoder:
    """Turns the tokens of one sequence into text as they come.

    All texts of `push` and the one of `flush`, joined, are `ModelTokenizer.decode` of all tokens.
    """

    def __init__(self, backend: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._emitted = 0

    def push(self, token_id: int) -> str:
        """New text that the token completes; empty while a character is incomplete and for special tokens."""
        self._ids.append(token_id)
        text = self._stream.step(self._backend, token_id) or ""
        self._emitted += len(text)
        return text

    def flush(self) -> str:
        """What is left at the end: U+FFFD for bytes that never became a character."""
        text: str = self._backend.decode(self._ids, skip_special_tokens=True)
        rest = text[self._emitted :]
        self._emitted += len(rest)
        return rest


def load_tokenizer(source: ModelSource) -> ModelTokenizer:
    """Load the tokenizer of a model. Raises ModelError when its files cannot be read or have no fast backend."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load the tokenizer of {source.name} from {source.path}: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"the tokenizer of {source.name} in {source.path} has no tokenizer.json; save it with one")
    return ModelTokenizer(tokenizer)
