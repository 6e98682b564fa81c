"""A run is a directory: written atomically, so that a run that was killed is told from one that is done."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muai_lab.errors import RunError

MANIFEST = "manifest.json"

# `running` is also what a killed run says for ever: nothing but a finished run replaces it by `complete`.
RUNNING, COMPLETE, PARTIAL, FAILED = "running", "complete", "partial", "failed"


class RunDirectory:
    """The files of one run. The manifest's `status` is the last thing that a finished run writes."""

    def __init__(self, path: Path) -> None:
        """Make the directory. Raises RunError when it cannot be written or already holds a run."""
        self.path = path
        self._manifest: dict[str, Any] = {}
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = tempfile.NamedTemporaryFile(dir=path, prefix=".probe-")  # noqa: SIM115 (only whether it opens)
            probe.close()
        except OSError as error:
            raise RunError(
                f"the run directory {path} cannot be written ({error.strerror}): choose another with hydra.run.dir=PATH"
            ) from error
        if (path / MANIFEST).exists():
            raise RunError(f"{path} already holds a run: choose another directory with hydra.run.dir=PATH")

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The manifest as last written."""
        return self._manifest

    def update_manifest(self, **entries: Any) -> None:
        """Add or replace entries of the manifest and write it."""
        self._manifest.update(entries)
        self.write_json(MANIFEST, self._manifest)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file; NaN is an error here, a missing value is null."""
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file so that a reader sees all of it or none."""
        target = self.path / name
        handle, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
