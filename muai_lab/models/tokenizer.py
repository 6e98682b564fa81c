"""Conversion between text and token ids, for every engine and for the load generator."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muai_lab.errors import InvalidRequest, ModelError
from muai_lab.models import vocabulary
from muai_lab.models.registry import ModelSource

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

    ChatTemplate = Callable[[list[dict[str, str]]], str]

_WORD_STARTS = ("Ġ", "▁")  # how byte-level and SentencePiece vocabularies write the space before a word
_TRIES = 64
_CONTEXT_TOKENS = 32  # decoded again before the rest of an output
_KEEPING = ("ByteLevel", "Digits", "Metaspace")  # steps before the tokenizer's own that drop no character
_KEEPING_SPLITS = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


class ModelTokenizer:
    """The tokenizer that belongs to a model; may be used from several threads at once.

    vocab_size: number of tokens, special ones included. eos_token_ids: tokens that end an output.
    """

    def __init__(self, backend: Tokenizer, eos_token_ids: frozenset[int], chat_template: ChatTemplate | None) -> None:
        self._backend = backend
        self._chat_template = chat_template
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.eos_token_ids = eos_token_ids

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, with the special tokens that the model expects around a prompt."""
        return self._encode(text, add_special_tokens=True)

    def at_least(self, text: str) -> int:
        """Return a lower bound of the number of tokens of `text`, without encoding it; 0 if there is none.

        No token has more characters than the longest in the vocabulary. This gives no bound if the tokenizer drops
        parts of a text, such as repeated spaces. Unicode's normal form NFC merges at most four characters into one.
        """
        if not self._keeps_text:
            return 0
        return len(text) // (self._longest_token if text.isascii() else 4 * self._longest_token)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the token ids of a conversation (`role`, `content`), ready for the assistant's answer.

        A model without a chat template (a T5) gets the contents joined by newlines, without the roles. Raises
        InvalidRequest if the template refuses the conversation, for example because of its order of roles.
        """
        if self._chat_template is None:
            return self.encode("\n".join(message["content"] for message in messages))
        from jinja2 import TemplateError

        try:
            text = self._chat_template(list(messages))
        except TemplateError as error:
            raise InvalidRequest(f"the model's chat template refuses: {error}", param="messages") from error
        return self._encode(text, add_special_tokens=False)  # the template has written them

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # `encode` holds the interpreter lock all the while, which stops every other thread; a batch does not.
        return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)))

    @cached_property
    def _keeps_text(self) -> bool:
        """True if no character of a text is missing in its tokens."""
        normalizer, pre_tokenizer = self._backend.normalizer, self._backend.pre_tokenizer
        if normalizer is not None and type(normalizer).__name__ != "NFC":
            return False
        if pre_tokenizer is None or self._backend.truncation is not None:
            return False
        described = json.loads(pre_tokenizer.__getstate__())
        steps = described.get("pretokenizers", [described])
        return all(step["type"] in _KEEPING or step.get("behavior") in _KEEPING_SPLITS for step in steps)

    def token_ends(self, texts: list[str]) -> list[list[int]]:
        """Return the end of each token of each text, in characters, without special tokens."""
        found = self._backend.encode_batch(texts, add_special_tokens=False)
        return [[end for _, end in encoding.offsets] for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens; bytes that form no character become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> StreamDecoder:
        """Return a decoder for one sequence that arrives token by token."""
        return StreamDecoder(self._backend)

    @cached_property
    def ordinary_token_ids(self) -> list[int]:
        """Ids of tokens that are a space and an ASCII word, in ascending order.

        Each of them encodes to itself, also beside another, so a text made of them keeps its number of tokens.
        """
        words: dict[int, str] = {}
        for token, index in self._backend.get_vocab(with_added_tokens=False).items():
            word = token[1:]
            if token.startswith(_WORD_STARTS) and len(word) > 1 and word.isascii() and word.isalpha():
                words[index] = f" {word}"
        ids = sorted(words)
        encoded = self._backend.encode_batch([words[index] for index in ids], add_special_tokens=False)
        # SentencePiece adds a space before the text, which may show as a token of its own: compare the last one.
        return [index for index, found in zip(ids, encoded, strict=True) if found.ids[-1:] == [index]]

    @cached_property
    def _tokens_around(self) -> int:
        """Special tokens that the model expects around every prompt."""
        return len(self.encode(""))

    def prompt_of(self, n_tokens: int, rng: np.random.Generator) -> tuple[str, list[int]]:
        """Return a random text that `encode` turns into exactly `n_tokens` ids, and these ids.

        The same state of the generator gives the same text. Raises ModelError if this tokenizer has no such text:
        special tokens around every prompt leave no room, or there are no ordinary words.
        """
        words = self.ordinary_token_ids
        around = self._tokens_around
        if n_tokens <= around or not words:
            reason = f"every prompt has at least {around + 1}" if words else "it knows no ordinary words"
            raise ModelError(f"the tokenizer cannot make a prompt of {n_tokens} tokens: {reason}")

        def draw(count: int) -> list[int]:
            return [words[index] for index in rng.integers(len(words), size=count)]

        chosen = draw(n_tokens - around)
        for _ in range(_TRIES):
            text = self.decode(chosen)
            ids = self.encode(text)
            surplus = len(ids) - n_tokens
            if surplus == 0:
                return text, ids
            # A word was split or two were merged. Replace words at the end, as many as fit, and try again.
            kept = chosen[: max(len(chosen) - max(surplus, 0) - 1, 0)]
            chosen = kept + draw(max(len(chosen) - surplus - len(kept), 1))
        raise ModelError(f"the tokenizer made no text of exactly {n_tokens} tokens in {_TRIES} tries")


class StreamDecoder:
    """Decodes the tokens of one sequence into text as they arrive.

    The texts of all `push` calls and of `flush`, joined, are `ModelTokenizer.decode` of all tokens.
    """

    def __init__(self, backend: Tokenizer) -> None:
        from tokenizers.decoders import DecodeStream

        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._shown = 0  # tokens whose text was returned

    def push(self, token_id: int) -> str:
        """Return the text that the token completes; empty for special tokens and while a character is incomplete."""
        self._ids.append(token_id)
        text = self._stream.step(self._backend, token_id) or ""
        if text:
            self._shown = len(self._ids)
        return text

    def flush(self) -> str:
        """Return the rest at the end: U+FFFD for bytes that form no character. A second call returns nothing."""
        shown, self._shown = self._shown, len(self._ids)
        if shown == len(self._ids):
            return ""
        # A few tokens before the rest are enough; decoding all takes longer the longer the output is.
        start = max(0, shown - _CONTEXT_TOKENS)
        before = self._backend.decode(self._ids[start:shown], skip_special_tokens=True)
        return self._backend.decode(self._ids[start:], skip_special_tokens=True)[len(before) :]


def load_tokenizer(source: ModelSource) -> ModelTokenizer:
    """Load the tokenizer of a model. Raises ModelError if its files cannot be read or hold no fast tokenizer."""
    if source.path is None:
        raise ModelError(f"model {source.name} has no files on this machine")
    if source.kind == "embedded":
        return _load_embedded(source.path)
    return _load_with_transformers(source.path, source.name)


def _load_embedded(path: Path) -> ModelTokenizer:
    """Load the same as Transformers without importing it, because the load generator needs no torch."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from tokenizers import Tokenizer

    settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = None
    if "chat_template" in settings:
        compiled = ImmutableSandboxedEnvironment().from_string(vocabulary.CHAT_TEMPLATE)

        def template(messages: list[dict[str, str]]) -> str:
            return compiled.render(messages=messages, add_generation_prompt=True)

    return ModelTokenizer(Tokenizer.from_file(str(path / "tokenizer.json")), _end_tokens(path, None), template)


def _load_with_transformers(path: Path, name: str) -> ModelTokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the Rust backend raises bare exceptions for files that it cannot read
        raise ModelError(
            f"cannot load the tokenizer of {name} from {path}: {error}. Copy or download the model again."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer of {name} in {path} is a slow one. Save it there with a tokenizer.json (a fast tokenizer)."
        )

    def template(messages: list[dict[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    has_template = tokenizer.chat_template is not None
    end_tokens = _end_tokens(path, tokenizer.eos_token_id)
    return ModelTokenizer(tokenizer.backend_tokenizer, end_tokens, template if has_template else None)


def _end_tokens(path: Path, tokenizer_eos: int | None) -> frozenset[int]:
    """Return the end tokens of generation_config.json (chat models often have several) and of the tokenizer."""
    found = set() if tokenizer_eos is None else {tokenizer_eos}
    for file in ("generation_config.json", "config.json"):
        if (path / file).is_file():
            named = json.loads((path / file).read_text(encoding="utf-8")).get("eos_token_id")
            found.update(named if isinstance(named, list) else [] if named is None else [named])
            if named is not None:
                break
    return frozenset(found)
