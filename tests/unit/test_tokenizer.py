"""Encoding, decoding in one piece and as a stream, and prompts of an exact length."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from muai_lab.errors import InvalidRequest, ModelError
from muai_lab.models.registry import resolve_model
from muai_lab.models.tokenizer import ModelTokenizer, load_tokenizer

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why is the sky blue? <b>λ</b>"},
]

token_ids = st.lists(st.integers(min_value=0, max_value=2047), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(embedded_cache: Path) -> ModelTokenizer:
    return load_tokenizer(resolve_model("qwen_chat"))


@pytest.fixture(scope="module")
def by_transformers(embedded_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    """The same files, loaded as any checkpoint of a user would be."""
    copy = tmp_path_factory.mktemp("models") / "copy"
    path = resolve_model("qwen_chat").path
    assert path is not None
    shutil.copytree(path, copy)
    return load_tokenizer(resolve_model(str(copy)))


def streamed(tokenizer: ModelTokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join([stream.push(index) for index in ids]) + stream.flush()


@given(text=st.text(max_size=80))
def test_text_survives_a_round_trip_but_for_unicode_normal_form(tokenizer: ModelTokenizer, text: str) -> None:
    import unicodedata

    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


@given(text=st.text(max_size=80))
def test_embedded_and_transformers_loading_agree(
    tokenizer: ModelTokenizer, by_transformers: ModelTokenizer, text: str
) -> None:
    assert tokenizer.encode(text) == by_transformers.encode(text)


def test_embedded_and_transformers_loading_agree_on_chats(
    tokenizer: ModelTokenizer, by_transformers: ModelTokenizer
) -> None:
    assert tokenizer.encode_chat(CONVERSATION) == by_transformers.encode_chat(CONVERSATION)
    assert tokenizer.eos_token_ids == by_transformers.eos_token_ids
    assert tokenizer.vocab_size == by_transformers.vocab_size


def test_chat_has_the_chatml_form(tokenizer: ModelTokenizer) -> None:
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hello!"}])

    im_start, im_end = 1, 2
    newline = tokenizer.encode("\n")
    assert ids == [
        im_start, *tokenizer.encode("user\n"), *tokenizer.encode("Hello!"), im_end, *newline,
        im_start, *tokenizer.encode("assistant\n"),
    ]  # fmt: skip


def test_without_a_chat_template_contents_are_joined(embedded_cache: Path) -> None:
    tokenizer = load_tokenizer(resolve_model("t5_summarizer"))

    assert tokenizer.encode_chat(CONVERSATION) == tokenizer.encode("Be brief.\nWhy is the sky blue? <b>λ</b>")


def test_end_tokens_are_those_of_the_generation_config(tokenizer: ModelTokenizer, embedded_cache: Path) -> None:
    assert tokenizer.eos_token_ids == {0, 2}
    assert load_tokenizer(resolve_model("t5_summarizer")).eos_token_ids == {0}


def test_special_tokens_do_not_show(tokenizer: ModelTokenizer) -> None:
    ids = [1, *tokenizer.encode("warm bread"), 2, 3, 0]

    assert tokenizer.decode(ids) == "warm bread"
    assert streamed(tokenizer, ids) == "warm bread"


@settings(max_examples=300)
@given(ids=token_ids)
def test_streamed_text_is_the_whole_text(tokenizer: ModelTokenizer, ids: list[int]) -> None:
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@given(text=st.text(max_size=40))
def test_streamed_text_holds_no_half_characters(tokenizer: ModelTokenizer, text: str) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(index) for index in tokenizer.encode(text)]

    assert ("\ufffd" in "".join(pieces)) <= ("\ufffd" in text)


def test_a_character_of_several_tokens_comes_when_it_is_complete(tokenizer: ModelTokenizer) -> None:
    ids = tokenizer.encode("🦉")
    stream = tokenizer.stream()

    assert len(ids) > 1
    assert [stream.push(index) for index in ids] == [""] * (len(ids) - 1) + ["🦉"]
    assert stream.flush() == ""


def test_flush_shows_what_never_became_a_character(tokenizer: ModelTokenizer) -> None:
    stream = tokenizer.stream()
    first = stream.push(tokenizer.encode("🦉")[0])

    assert (first, stream.flush(), stream.flush()) == ("", "\ufffd", "")


@settings(deadline=None)
@given(n_tokens=st.integers(min_value=1, max_value=400), seed=st.integers(min_value=0, max_value=2**32))
def test_prompt_has_exactly_the_wanted_tokens(tokenizer: ModelTokenizer, n_tokens: int, seed: int) -> None:
    text, ids = tokenizer.prompt_of(n_tokens, np.random.default_rng(seed))

    assert len(ids) == n_tokens
    assert tokenizer.encode(text) == ids


def test_the_same_generator_gives_the_same_prompts(tokenizer: ModelTokenizer) -> None:
    one, same = np.random.default_rng(7), np.random.default_rng(7)

    first = [tokenizer.prompt_of(20, one) for _ in range(3)]

    assert first == [tokenizer.prompt_of(20, same) for _ in range(3)]
    assert len({text for text, _ in first}) == 3


def test_ordinary_tokens_are_words(tokenizer: ModelTokenizer) -> None:
    words = [tokenizer.decode([index]) for index in tokenizer.ordinary_token_ids]

    assert len(words) > 500
    assert all(word[0] == " " and word[1:].isascii() and word[1:].isalpha() for word in words)


def test_a_prompt_of_no_tokens_is_refused(tokenizer: ModelTokenizer) -> None:
    with pytest.raises(ModelError, match="0 tokens"):
        tokenizer.prompt_of(0, np.random.default_rng(0))


def test_prompt_of_corrects_itself_when_words_fall_apart(tokenizer: ModelTokenizer) -> None:
    # Given words without the space before them: joined, their number of tokens is anything.
    gluing = ModelTokenizer(tokenizer._backend, frozenset(), None)
    gluing.ordinary_token_ids = [tokenizer.encode(letter)[0] for letter in "aebotn"]

    for n_tokens in (1, 2, 17, 64):
        text, ids = gluing.prompt_of(n_tokens, np.random.default_rng(n_tokens))
        assert len(ids) == n_tokens
        assert tokenizer.encode(text) == ids


def test_a_template_that_refuses_is_an_invalid_request(embedded_cache: Path, tmp_path: Path) -> None:
    path = resolve_model("qwen_chat").path
    assert path is not None
    copy = shutil.copytree(path, tmp_path / "copy")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ raise_exception('only the user may speak') }}"
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(resolve_model(str(copy)))

    with pytest.raises(InvalidRequest, match="only the user may speak") as caught:
        tokenizer.encode_chat(CONVERSATION)

    assert caught.value.param == "messages"


def test_a_broken_tokenizer_file_is_named(embedded_cache: Path, tmp_path: Path) -> None:
    path = resolve_model("qwen_chat").path
    assert path is not None
    copy = shutil.copytree(path, tmp_path / "copy")
    (copy / "tokenizer.json").write_text('{"version": "1.0"')

    with pytest.raises(ModelError, match=rf"tokenizer of copy from {copy}"):
        load_tokenizer(resolve_model(str(copy)))


@given(text=st.text(max_size=400))
def test_no_text_has_fewer_tokens_than_the_lower_bound(tokenizer: ModelTokenizer, text: str) -> None:
    assert tokenizer.at_least(text) <= len(tokenizer.encode(text))


@pytest.mark.parametrize("piece", ["the", " ", "e\u0302\u0301", "\u1112\u1161\u11ab", "\u03b1\u0313\u0300\u0345", "\n"])
def test_the_lower_bound_holds_for_texts_that_become_short(tokenizer: ModelTokenizer, piece: str) -> None:
    text = piece * 2000

    assert 0 < tokenizer.at_least(text) <= len(tokenizer.encode(text))


def test_a_tokenizer_that_drops_spaces_has_no_lower_bound(embedded_cache: Path) -> None:
    summarizer = load_tokenizer(resolve_model("t5_summarizer"))
    words = Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = Whitespace()

    for one in (summarizer, ModelTokenizer(words, frozenset(), None)):
        assert one.at_least(" " * 100_000) <= len(one.encode(" " * 100_000))
