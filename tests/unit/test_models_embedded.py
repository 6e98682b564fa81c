"""The embedded models are the same on every machine, and a damaged cache mends itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from muai_lab.errors import ModelError
from muai_lab.models import embedded
from muai_lab.models.content import content_hash, is_intact
from muai_lab.models.embedded import EMBEDDED_MODELS, cache_dir, embedded_path

# Equal on every machine. A change here is a change of the models: figures measured before it are not comparable.
CONTENT_HASHES = {
    "qwen_chat": "dc6f4d0e6d7032ffe888c3e4fc4967e95ad4c0dd8e6158ea5d77af794fada710",
    "t5_summarizer": "3777d93de1dcdc827912b6fd102965a8f17c354078e2b6bdf3d467bb483c2631",
}

BUILD = "from muai_lab.models.embedded import embedded_path; print(embedded_path('qwen_chat'))"


def start_build(cache: Path, **environment: str) -> subprocess.Popen[str]:
    root = Path(embedded.__file__).parents[2]
    variables = os.environ | {"MUAI_CACHE_DIR": str(cache), "PYTHONPATH": str(root)} | environment
    return subprocess.Popen([sys.executable, "-c", BUILD], env=variables, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_content_is_the_same_on_every_machine(name: str, embedded_cache: Path) -> None:
    assert content_hash(embedded_path(name)) == CONTENT_HASHES[name]


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        {"PYTHONHASHSEED": "2", "RAYON_NUM_THREADS": "4", "TOKENIZERS_PARALLELISM": "true"},
    ],
)
def test_hash_seed_and_threads_do_not_matter(environment: dict[str, str], tmp_path: Path) -> None:
    output, _ = start_build(tmp_path, **environment).communicate(timeout=200)

    assert content_hash(Path(output.strip())) == CONTENT_HASHES["qwen_chat"]


def test_two_processes_that_build_at_once_both_get_the_model(tmp_path: Path) -> None:
    builders = [start_build(tmp_path), start_build(tmp_path)]
    paths = {builder.communicate(timeout=200)[0].strip() for builder in builders}

    assert [builder.returncode for builder in builders] == [0, 0]
    assert [Path(path) for path in paths] == list((tmp_path / "models").iterdir())
    assert is_intact(Path(paths.pop()))


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_directory_is_a_complete_hugging_face_model(name: str, embedded_cache: Path) -> None:
    files = {path.name for path in embedded_path(name).iterdir()}

    assert files == {
        "config.json",
        "content.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_built_model_is_used_again(embedded_cache: Path) -> None:
    first = embedded_path("qwen_chat").stat()

    assert embedded_path("qwen_chat").stat().st_ino == first.st_ino


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "content.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_model_is_built_again(file: str, damage: str, embedded_cache: Path) -> None:
    victim = embedded_path("qwen_chat") / file
    content = victim.read_bytes()
    if damage == "changed":
        victim.write_bytes(content[:-9] + b"x" + content[-8:])
    elif damage == "cut":
        victim.write_bytes(content[: len(content) // 2])
    else:
        victim.unlink()

    mended = embedded_path("qwen_chat")

    assert (mended / file).read_bytes() == content
    assert [path.name for path in mended.parent.iterdir() if path.name.startswith(".")] == []


def test_a_new_recipe_gets_a_directory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = embedded.recipe_hash("qwen_chat")
    monkeypatch.setattr(embedded, "RECIPE_VERSION", embedded.RECIPE_VERSION + 1)

    assert embedded.recipe_hash("qwen_chat") != before


def test_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MUAI_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "muai_lab"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "muai_lab"

    monkeypatch.setenv("MUAI_CACHE_DIR", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MUAI_CACHE_DIR", str(tmp_path / "file"))

    with pytest.raises(ModelError, match=r"file.*MUAI_CACHE_DIR"):
        embedded_path("qwen_chat")


def test_vocabulary_has_the_agreed_size_and_special_tokens(embedded_cache: Path) -> None:
    tokenizer = json.loads((embedded_path("qwen_chat") / "tokenizer.json").read_text())

    assert sorted(tokenizer["model"]["vocab"].values()) == list(range(2048))
    assert [token["content"] for token in tokenizer["added_tokens"]] == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<pad>",
    ]
