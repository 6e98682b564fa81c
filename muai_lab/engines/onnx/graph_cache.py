"""Exported graphs on disk: made once per model and recipe, whole or not at all.

An entry is a directory `<model content>-<recipe>` under `onnx/` of the cache. It is built beside its place by a process
of its own, and moved there when it is complete; `entry.json` in it carries a hash of every file, so a damaged entry is
noticed and built again. A file lock, which the system drops when its holder dies, lets one process at a time build.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from muai_lab.engines.onnx.child_process import NAME, carry_out
from muai_lab.engines.onnx.recipe import GraphFacts, Recipe
from muai_lab.errors import EngineError
from muai_lab.models.content import content_hash, file_hash
from muai_lab.models.embedded import cache_dir
from muai_lab.models.registry import ModelSource

ENTRY_FILE = "entry.json"
FACTS_FILE = "facts.json"

log = logging.getLogger(__name__)

BuildGraph = Callable[[ModelSource, Recipe, Path], None]


def graph_directory(source: ModelSource, recipe: Recipe, build: BuildGraph | None = None) -> Path:
    """Return the directory of the graph, intact; export it if it is absent or damaged (seconds to minutes).

    build: writes the graph into an empty directory, instead of the export in a process of its own. Raises EngineError
    if the model cannot be exported or the cache cannot be written.
    """
    if source.path is None:
        raise EngineError(NAME, f"{source.name} has no files on this machine")
    content = source.content_hash or content_hash(source.path)
    root = cache_dir() / "onnx"
    entry = root / f"{content[:24]}-{recipe.hash()}"
    if is_intact(entry):
        return entry
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{entry.name}.lock"):
            if not is_intact(entry):  # else another process made it while this one waited for the lock
                _make(entry, source, recipe, build or _build_in_child)
    except OSError as error:
        raise EngineError(
            NAME,
            f"cannot keep exported graphs in {root}: {error.strerror or error}. "
            "Set MUAI_CACHE_DIR to a directory that can be written and has room",
        ) from error
    return entry


def read_facts(entry: Path) -> GraphFacts:
    """Read the facts that the export wrote about the graph in `entry`."""
    return GraphFacts.of(json.loads((entry / FACTS_FILE).read_text(encoding="utf-8")))


def write_facts(directory: Path, facts: GraphFacts) -> None:
    """Write the facts for `read_facts`."""
    (directory / FACTS_FILE).write_text(json.dumps(asdict(facts), indent=1) + "\n", encoding="utf-8")


def is_intact(entry: Path) -> bool:
    """True if every file of the entry is present and unchanged."""
    try:
        written = json.loads((entry / ENTRY_FILE).read_text(encoding="utf-8"))
        return bool(written["files"] == _file_hashes(entry))
    except (OSError, ValueError, TypeError, KeyError):
        return False  # absent, unreadable or not ours: in each case the caller builds again


def _make(entry: Path, source: ModelSource, recipe: Recipe, build: BuildGraph) -> None:
    """Build the entry. The caller holds its lock, so anything else in its place is left over from a failure."""
    prefix = f".{entry.name}-"
    for left_over in entry.parent.glob(f"{prefix}*"):
        shutil.rmtree(left_over, ignore_errors=True)  # of a process that was killed
    if entry.exists():
        log.warning("the exported graph in %s is damaged: exporting %s again", entry, source.name)
        shutil.rmtree(entry)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=entry.parent, ignore_cleanup_errors=True) as scratch:
        fresh = Path(scratch) / "graph"
        fresh.mkdir()
        build(source, recipe, fresh)
        record = {"model": source.name, "recipe": recipe.described(), "files": _file_hashes(fresh)}
        (fresh / ENTRY_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        fresh.rename(entry)


def _build_in_child(source: ModelSource, recipe: Recipe, directory: Path) -> None:
    order = {
        "source": source_order(source),
        "recipe": asdict(recipe),
        "base": str(graph_directory(source, recipe.without_int8())) if recipe.int8 else None,
    }
    carry_out("muai_lab.engines.onnx.export_process", order, directory, task=f"export {source.name} to a graph")


def source_order(source: ModelSource) -> dict[str, Any]:
    """Return the source as plain data, for an order to another process."""
    return {**asdict(source), "path": str(source.path)}


def source_of(order: Mapping[str, Any]) -> ModelSource:
    """Return the source that `source_order` described."""
    return ModelSource(**{**order, "path": Path(order["path"])})


def _file_hashes(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.iterdir() if path.is_file() and path.name != ENTRY_FILE)
    return {path.name: file_hash(path) for path in files}
