"""A model's name leads to its files, or to an error that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from muai_lab.errors import ModelError
from muai_lab.models.registry import resolve_model

FILES = {
    "config.json": json.dumps({"model_type": "qwen2"}),
    "model.safetensors": "weights",
    "tokenizer.json": "{}",
}


def model_directory(directory: Path, **changes: str | None) -> Path:
    """A directory with the files of a model; a change to None leaves the file out (`__` stands for a dot)."""
    directory.mkdir(parents=True, exist_ok=True)
    renamed = {name.replace("__", "."): content for name, content in changes.items()}
    for name, content in (FILES | renamed).items():
        if content is not None:
            (directory / name).write_text(content)
    return directory


@pytest.fixture
def offline_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize(("name", "encoder_decoder"), [("qwen_chat", False), ("t5_summarizer", True)])
def test_an_embedded_name_gives_the_built_model(name: str, encoder_decoder: bool, embedded_cache: Path) -> None:
    source = resolve_model(name)

    assert (source.name, source.kind, source.hub_id) == (name, "embedded", None)
    assert source.path is not None
    assert source.path.is_relative_to(embedded_cache)
    assert source.encoder_decoder is encoder_decoder
    assert source.content_hash is not None


def test_one_embedded_model_may_serve_under_another_name(embedded_cache: Path) -> None:
    source = resolve_model("my_chat", checkpoint="qwen_chat")

    assert (source.name, source.kind) == ("my_chat", "embedded")
    assert source.content_hash == resolve_model("qwen_chat").content_hash


def test_a_checkpoint_directory_serves_under_the_given_name(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "mine")

    source = resolve_model("qwen_chat", checkpoint=str(directory))

    assert (source.name, source.kind, source.path) == ("qwen_chat", "local", directory)


def test_a_directory_may_be_the_name_itself(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "mine")

    source = resolve_model(str(directory))

    assert (source.name, source.kind, source.path) == ("mine", "local", directory)


def test_content_hash_follows_the_weights(tmp_path: Path) -> None:
    one = resolve_model(str(model_directory(tmp_path / "one")))
    same = resolve_model(str(model_directory(tmp_path / "same")))
    other = resolve_model(str(model_directory(tmp_path / "other", model__safetensors="other weights")))

    assert one.content_hash == same.content_hash
    assert one.content_hash != other.content_hash


@pytest.mark.parametrize(
    ("config", "encoder_decoder"),
    [
        ({"model_type": "llama"}, False),
        ({"model_type": "t5"}, True),
        ({"model_type": "bert", "is_encoder_decoder": True}, True),
        ({"model_type": "t5", "is_encoder_decoder": False}, False),
    ],
)
def test_encoder_decoder_is_read_from_the_config(
    config: dict[str, object], encoder_decoder: bool, tmp_path: Path
) -> None:
    directory = model_directory(tmp_path / "model", config__json=json.dumps(config))

    assert resolve_model(str(directory)).encoder_decoder is encoder_decoder


@pytest.mark.parametrize(
    ("missing", "named"),
    [("config__json", "config.json"), ("model__safetensors", "weights"), ("tokenizer__json", "tokenizer")],
)
def test_a_missing_file_is_named(missing: str, named: str, tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "model", **{missing: None})

    with pytest.raises(ModelError, match=rf"{directory} lacks .*{named}"):
        resolve_model("qwen_chat", checkpoint=str(directory))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    directory = model_directory(tmp_path / "model", model__safetensors__index__json=json.dumps(index))

    with pytest.raises(ModelError, match=r"lacks 1 .*model-00002-of-00002\.safetensors"):
        resolve_model(str(directory))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_an_unreadable_config_is_named(content: str, tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "model", config__json=content)

    with pytest.raises(ModelError, match=r"cannot read .*config\.json"):
        resolve_model(str(directory))


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"'qwen_chatt'.*Did you mean qwen_chat\?"):
        resolve_model("qwen_chatt")


def test_an_unknown_name_is_answered_with_all_names() -> None:
    with pytest.raises(ModelError, match=r"'gpt'.*qwen_chat, t5_summarizer"):
        resolve_model("gpt")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"there is no directory {tmp_path}/gone"):
        resolve_model("qwen_chat", checkpoint=f"{tmp_path}/gone")


def test_a_hub_id_without_network_says_what_to_do(offline_hub: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot get model some-org/some-model from the hub.*local directory"):
        resolve_model("qwen_chat", checkpoint="some-org/some-model")


def test_a_hub_id_that_cannot_be_one_is_an_unknown_name(offline_hub: Path) -> None:
    with pytest.raises(ModelError, match=r"unknown model 'a--b/c d'"):
        resolve_model("a--b/c d")


def test_a_hub_model_in_the_cache_needs_no_network(offline_hub: Path) -> None:
    repository = offline_hub / "models--some-org--some-model"
    snapshot = model_directory(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)

    source = resolve_model("qwen_chat", checkpoint="some-org/some-model")

    assert (source.name, source.kind, source.hub_id) == ("qwen_chat", "hub", "some-org/some-model")
    assert source.path == snapshot
