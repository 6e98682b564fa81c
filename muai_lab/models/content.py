"""One hash for the contents of a model directory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

CONTENT_FILE = "content.json"

_LARGE_BYTES = 256 * 2**20
_WEIGHT_SUFFIXES = (".safetensors", ".bin")
_MODEL_SUFFIXES = (*_WEIGHT_SUFFIXES, ".json", ".txt", ".model", ".jinja")


def content_hash(directory: Path) -> str:
    """Return the SHA-256 over the names and contents of the model's files (weights, configuration, tokenizer).

    Weight files above 256 MiB are hashed by their first MiB and their size. In a safetensors file, the first MiB holds
    the header with all names, shapes and types, and the first weights.
    """
    return _combine(_file_hashes(directory))


def file_hash(path: Path, *, whole: bool = False) -> str:
    """Return the SHA-256 of a file; above 256 MiB over its first MiB and its size, unless `whole` is set."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size > _LARGE_BYTES and not whole:
            return hashlib.sha256(file.read(2**20) + str(size).encode()).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_content_file(directory: Path) -> None:
    """Record the hash of every file, to be checked by `is_intact`."""
    record = json.dumps(_record(directory), indent=1, sort_keys=True)
    (directory / CONTENT_FILE).write_text(record + "\n", encoding="utf-8")


def is_intact(directory: Path) -> bool:
    """True if every file that `write_content_file` recorded is present and unchanged."""
    try:
        written = json.loads((directory / CONTENT_FILE).read_text(encoding="utf-8"))
        return bool(written == _record(directory))
    except (OSError, ValueError):
        return False  # absent, unreadable or not ours: in each case the caller builds again


def _record(directory: Path) -> dict[str, object]:
    files = _file_hashes(directory)
    return {"content_hash": _combine(files), "files": files}


def _file_hashes(directory: Path) -> dict[str, str]:
    return {path.name: file_hash(path, whole=path.suffix not in _WEIGHT_SUFFIXES) for path in _model_files(directory)}


def _model_files(directory: Path) -> list[Path]:
    found = (path for path in directory.iterdir() if path.suffix in _MODEL_SUFFIXES and path.name != CONTENT_FILE)
    return sorted((path for path in found if path.is_file()), key=lambda path: path.name)


def _combine(files: dict[str, str]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
