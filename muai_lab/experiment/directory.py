"""A run is a directory: written atomically, so that a run that was killed is told from one that is done."""

from __future__ import annotations

import errno
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


# Held back so that a run on a disk that fills up can still say so.
_RESERVE = ".reserve"
_RESERVE_BYTES = 32 * 1024  # twice that, in hexadecimal
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that there is no more space to write to."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


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
        """Add or replace entries of the manifest and write it, at need into the space that was held back for that.

        Raises RunError when there is no space even so.
        """
        self._manifest.update(entries)
        if entries.get("status") == RUNNING:
            self.write_text(_RESERVE, os.urandom(_RESERVE_BYTES).hex())  # random: zeros may take no space
        try:
            self.write_json(MANIFEST, self._manifest)
        except RunError as error:
            if not (disk_is_full(error) and self._give_up_reserve()):
                raise
            self.write_json(MANIFEST, self._manifest)
        if self._manifest.get("status") != RUNNING:
            self._give_up_reserve()

    def _give_up_reserve(self) -> bool:
        """Free the space that was held back; False when it was not there any more."""
        try:
            (self.path / _RESERVE).unlink()
        except OSError:
            return False
        return True

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file; NaN is an error here, a missing value is null."""
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file so that a reader sees all of it or none. Raises RunError when it cannot be written."""
        target = self.path / name
        try:
            _write_whole(target, text)
        except OSError as error:
            raise RunError(
                f"cannot write {target}: {error.strerror}; free space or choose another directory (hydra.run.dir=PATH)"
            ) from error


def _write_whole(target: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
