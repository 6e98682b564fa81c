"""A run is a directory: written atomically, so that a run that was killed is told from one that is done.

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

# `running` is also what a killed run says for ever: nothing but a finished run replaces it by `complete`.
RUNNING, COMPLETE, PARTIAL, FAILED = "running", "complete", "partial", "failed"

# What a run writes near its end: of an earlier one, it must not stand beside the new one's beginnings.
_RESULTS = ("requests.parquet", "server_metrics.parquet", "summary.json", "report.html")


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
    """The files of one run. The manifest's `status` is the last thing that a finished run writes.

    replaced: how the run ended that was here before and did not finish; None if there was none.
    """

    def __init__(self, path: Path) -> None:
        """Make the directory, or empty it of a run that did not finish.

        Raises RunError when it cannot be written, holds a finished run, or one that another process is writing.
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
        """Add or replace entries of the manifest and write it, at need into the space that was held back for that.

        Raises RunError when there is no space even so.
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
            write_whole(target, text)
        except OSError as error:
            raise RunError(
                f"cannot write {target}: {error.strerror}; free space or choose another directory (hydra.run.dir=PATH)"
            ) from error


def status_in(path: Path) -> tuple[str | None, Mapping[str, Any]]:
    """The status of the run in a directory, and its manifest; None without a run."""
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
    """How the run in the directory ended, if it did not finish; None without a run, or with one that did."""
    status, manifest = status_in(path)
    if status in (None, COMPLETE):
        return None
    return "killed" if status == RUNNING else str(manifest.get("error") or status)


def _replaceable(path: Path) -> str | None:
    """How the run ended that may be replaced. Raises RunError if it finished, or if it still goes on."""
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
