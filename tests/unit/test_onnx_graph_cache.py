"""The cache of exported graphs: made once, whole or not at all, mended when damaged."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from muai_lab.engines.onnx.graph_cache import graph_directory, is_intact
from muai_lab.engines.onnx.recipe import GraphFacts, Recipe
from muai_lab.errors import EngineError
from muai_lab.models.registry import ModelSource

RECIPE = Recipe("decoder", "fp32", "cpu")


class Exporter:
    """Writes a small file as the graph, and counts how often it was asked to."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.builds = 0
        self._before = before

    def __call__(self, source: ModelSource, recipe: Recipe, directory: Path) -> None:
        self.builds += 1
        (directory / "model.onnx").write_text(f"graph of {source.name}")
        self._before()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MUAI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnx"


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    return ModelSource("small", tmp_path, None, "local", "c" * 64, False, "qwen2")


def entries(cache: Path) -> list[str]:
    """What a reader could take for a graph, or what a dead process left behind."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_a_graph_is_exported_once(cache: Path, source: ModelSource) -> None:
    export = Exporter()

    first = graph_directory(source, RECIPE, export)
    second = graph_directory(source, RECIPE, export)

    assert first == second
    assert (first / "model.onnx").read_text() == "graph of small"
    assert export.builds == 1


@pytest.mark.parametrize(
    "other",
    [
        Recipe("decoder", "fp16", "cuda"),
        Recipe("decoder", "fp32", "cpu", int8="u8s8"),
        Recipe("decoder", "fp32", "cpu", int8="u8u8"),
        Recipe("encoder_decoder", "fp32", "cpu"),
    ],
)
def test_each_recipe_has_a_graph_of_its_own(cache: Path, source: ModelSource, other: Recipe) -> None:
    export = Exporter()

    graph_directory(source, RECIPE, export)
    graph_directory(source, other, export)

    assert len(entries(cache)) == export.builds == 2


def test_other_weights_under_the_same_name_are_another_graph(cache: Path, source: ModelSource, tmp_path: Path) -> None:
    changed = ModelSource("small", tmp_path, None, "local", "d" * 64, False, "qwen2")

    assert graph_directory(source, RECIPE, Exporter()) != graph_directory(changed, RECIPE, Exporter())


def test_an_upgrade_of_the_exporter_is_another_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = RECIPE.hash()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")

    assert RECIPE.hash() != before


@pytest.mark.parametrize("damage", ["changed", "lost", "not finished"])
def test_a_damaged_graph_is_exported_again(cache: Path, source: ModelSource, damage: str) -> None:
    export = Exporter()
    entry = graph_directory(source, RECIPE, export)
    graph = entry / "model.onnx"
    if damage == "changed":
        graph.write_text("graph of smull")
    elif damage == "lost":
        graph.unlink()
    else:
        (entry / "entry.json").unlink()
    assert not is_intact(entry)

    assert graph_directory(source, RECIPE, export) == entry

    assert graph.read_text() == "graph of small"
    assert is_intact(entry)
    assert export.builds == 2


def test_an_export_that_fails_half_way_leaves_nothing(cache: Path, source: ModelSource) -> None:
    def fail() -> None:
        raise EngineError("onnx", "the weights end too early")

    with pytest.raises(EngineError, match="the weights end too early"):
        graph_directory(source, RECIPE, Exporter(fail))

    assert entries(cache) == []
    assert graph_directory(source, RECIPE, Exporter()).is_dir()


def test_what_a_killed_process_left_behind_is_removed(cache: Path, source: ModelSource) -> None:
    entry = graph_directory(source, RECIPE, Exporter())
    (entry / "entry.json").unlink()
    left_over = cache / f".{entry.name}-killed"
    left_over.mkdir()
    (left_over / "model.onnx").write_text("half a gr")

    graph_directory(source, RECIPE, Exporter())

    assert entries(cache) == [entry.name]


def test_of_two_that_export_at_once_one_works_and_the_other_waits(cache: Path, source: ModelSource) -> None:
    begun, go_on = threading.Event(), threading.Event()
    export = Exporter(lambda: (begun.set(), go_on.wait(200)))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(graph_directory(source, RECIPE, export))) for _ in range(2)]

    threads[0].start()
    assert begun.wait(200)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(200)

    assert export.builds == 1
    assert len(found) == 2
    assert found[0] == found[1]


def test_a_cache_that_cannot_be_written_is_told_with_what_to_do(
    tmp_path: Path, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("MUAI_CACHE_DIR", str(tmp_path / "file"))

    with pytest.raises(EngineError, match="Set MUAI_CACHE_DIR"):
        graph_directory(source, RECIPE, Exporter())


def test_facts_survive_being_written() -> None:
    facts = GraphFacts(4, 2, 64, 2048, 8192, (0, 2), start_token=1)
    fields = {name: getattr(facts, name) for name in facts.__dataclass_fields__}

    assert GraphFacts.of({**fields, "eos_token_ids": [0, 2]}) == facts
