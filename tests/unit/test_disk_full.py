"""A disk that fills up during a run."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from muai_lab.errors import RunError
from muai_lab.experiment import directory as directory_module
from muai_lab.experiment.directory import COMPLETE, PARTIAL, RUNNING, RunDirectory, disk_is_full


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.update_manifest(status=RUNNING)
    return directory


class FullDisk:
    """Has no space beyond what is freed. space: how many files fit on it before that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: RunDirectory) -> None:
        self.reserve = run.path / ".reserve"
        self.write = directory_module.write_whole
        monkeypatch.setattr(directory_module, "write_whole", self)

    def __call__(self, target: Path, text: str) -> None:
        if self.reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        self.write(target, text)


def status(run: RunDirectory) -> str:
    return str(json.loads((run.path / "manifest.json").read_text())["status"])


def test_the_manifest_can_still_say_that_the_run_is_partial(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, run)

    with pytest.raises(RunError, match="No space left on device; free space or choose another directory") as caught:
        run.write_text("summary.json", "{}")
    assert disk_is_full(caught.value)
    run.update_manifest(status=PARTIAL)

    assert status(run) == PARTIAL


def test_a_disk_without_even_that_space_leaves_the_manifest_whole(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.path / ".reserve").unlink()
    before = (run.path / "manifest.json").read_bytes()

    def full(target: Path, text: str) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded", str(target))

    monkeypatch.setattr(directory_module, "write_whole", full)
    with pytest.raises(RunError, match="Disk quota exceeded"):
        run.update_manifest(status=PARTIAL)

    assert (run.path / "manifest.json").read_bytes() == before


def test_a_run_that_is_done_gives_the_space_back(run: RunDirectory) -> None:
    assert (run.path / ".reserve").stat().st_size == 64 * 1024

    run.update_manifest(status=COMPLETE)

    assert not (run.path / ".reserve").exists()


def test_other_errors_are_no_full_disk() -> None:
    assert not disk_is_full(OSError(errno.EACCES, "Permission denied"))
    assert not disk_is_full(RunError("the server ended"))
    assert not disk_is_full(None)
