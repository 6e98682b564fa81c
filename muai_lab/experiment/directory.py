"""A run is a directory: written atomically, so that a killed run differs from a finished one.

A run that did not finish may be made again in the same directory, which it replaces; a finished one is never touched.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from muai_lab.errors import RunError
from muai_lab.experiment.worker import is_gone, worker
from muai_lab.files import write_whole

CONFIG, MANIFEST = "config.yaml", "manifest.json"

# A killed run keeps the status `running`: only a finished run replaces it by `complete`.
RUNNING, COMPLETE, PARTIAL, FAILED = "running", "complete", "partial", "failed"

# Files that a run writes near its end. Those of an earlier run must not remain beside the first files of a new one.
_RESULTS = ("requests.parquet", "server_metrics.parquet", "summary.json", "report.html")


# Space that is held back, so that a run on a full disk can still record that.
_RESERVE = ".reserve"
_RESERVE_BYTES = 32 * 1024  # twice that, in hexadecimal
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def disk_is_full(error: BaseException | None) -> bool:
    """True if an error, or one of its causes, is that there is no more space to write to."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


class RunDirectory:
    """The files of one run. A finished run writes the manifest's `status` last.

    replaced: The end of an unfinished run that was here before; None if there was none.
    """

    def __init__(self, path: Path) -> None:
        """Make the directory, or remove the files of a run that did not finish.

        Raises RunError if it cannot be written, or holds a run that is finished or that another process writes.
        """
        self.path = path
        self.replaced: str | None = None
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
            self.replaced = _replaceable(path)
            for name in (MANIFEST, *_RESULTS):
                (path / name).unlink(missing_ok=True)

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The manifest as last written."""
        return self._manifest

    def update_manifest(self, **entries: Any) -> None:
        """Add or replace entries of the manifest and write it, if necessary into the space that was held back.

        Raises RunError if there is no space even so.
        """
        self._manifest.update(entries)
        if entries.get("status") == RUNNING:
            self._manifest["process"] = worker()
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
        """Free the space that was held back; return False if it was used before."""
        try:
            (self.path / _RESERVE).unlink()
        except OSError:
            return False
        return True

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file; NaN is an error here, a missing value is null."""
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file so that a reader sees all of it or none. Raises RunError if it cannot be written."""
        target = self.path / name
        try:
            write_whole(target, text)
        except OSError as error:
            raise RunError(
                f"cannot write {target}: {error.strerror}; free space or choose another directory (hydra.run.dir=PATH)"
            ) from error


def status_in(path: Path) -> tuple[str | None, Mapping[str, Any]]:
    """Return the status of the run in a directory, and its manifest; None without a run."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, {}
    except (OSError, ValueError):
        return FAILED, {}  # manifests are written whole: this one was damaged later
    return (manifest.get("status", FAILED), manifest) if isinstance(manifest, dict) else (FAILED, {})


def is_finished(path: Path, config_yaml: str) -> bool:
    """True if the directory holds a finished run of this very configuration, as `config.yaml` would have it.

    Raises RunError if it holds a finished run of another configuration.
    """
    if status_in(path)[0] != COMPLETE:
        return False
    if not has_configuration(path, config_yaml):
        raise RunError(f"{path} already holds a finished run of another configuration: choose another directory")
    return True


def has_configuration(path: Path, config_yaml: str, *, besides: str | None = None) -> bool:
    """True if the run in the directory has this very configuration, all but the section `besides`."""
    try:
        theirs = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
        ours = yaml.safe_load(config_yaml)
    except (OSError, yaml.YAMLError):
        return False
    if besides is not None and isinstance(theirs, dict):
        theirs, ours = ({**tree, besides: None} for tree in (theirs, ours))
    return bool(theirs == ours)


def unfinished(path: Path) -> str | None:
    """Return the end of a run that did not finish, in words; None without a run, or with one that finished."""
    status, manifest = status_in(path)
    if status in (None, COMPLETE):
        return None
    return "killed" if status == RUNNING else str(manifest.get("error") or status)


def _replaceable(path: Path) -> str | None:
    """The end of a run that may be replaced. Raises RunError if it finished, or if it still runs."""
    status, manifest = status_in(path)
    if status == COMPLETE:
        raise RunError(
            f"{path} already holds a finished run, which is not written over: choose another directory with "
            "hydra.run.dir=PATH, or delete this one"
        )
    process = manifest.get("process")
    if status == RUNNING and process is not None and not is_gone(process):
        where = "" if process == worker() else f" on {process.get('host')}, process {process.get('pid')}"
        raise RunError(
            f"{path} holds a run that is being made now{where}: wait for its end, or choose another directory with "
            "hydra.run.dir=PATH; if that process is gone, delete the directory"
        )
    return unfinished(path)
