"""A run's directory: a finished run is never touched, one that did not finish is replaced by the next."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from muai_lab.commands import run as run_command
from muai_lab.errors import RunError
from muai_lab.experiment import runner
from muai_lab.experiment.directory import COMPLETE, FAILED, PARTIAL, RUNNING, RunDirectory, is_finished, unfinished
from muai_lab.experiment.worker import worker
from tests.unit.synthetic_run import record, write_run

GONE = {**worker(), "started": 0.0}  # the process of that number began at another time


def with_run(path: Path, **manifest: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for name in ("requests.parquet", "summary.json", "report.html", "notes.txt"):
        (path / name).write_text("old", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("manifest", "ended"),
    [
        ({"status": FAILED, "error": "the server died"}, "the server died"),
        ({"status": PARTIAL, "error": "interrupted"}, "interrupted"),
        ({"status": RUNNING, "process": GONE}, "killed"),
        ({"status": RUNNING}, "killed"),
        ({}, "failed"),
    ],
)
def test_a_run_that_did_not_finish_is_replaced(tmp_path: Path, manifest: dict[str, Any], ended: str) -> None:
    path = with_run(tmp_path / "run", **manifest)
    assert unfinished(path) == ended

    directory = RunDirectory(path)

    assert directory.replaced == ended
    assert [file.name for file in path.iterdir()] == ["notes.txt"]  # only what a run writes goes


def test_a_damaged_manifest_belongs_to_no_finished_run(tmp_path: Path) -> None:
    path = with_run(tmp_path / "run")
    (path / "manifest.json").write_text("{", encoding="utf-8")

    assert RunDirectory(path).replaced == "failed"


def test_an_empty_directory_has_nothing_to_replace(tmp_path: Path) -> None:
    assert unfinished(tmp_path) is None
    assert RunDirectory(tmp_path / "run").replaced is None


def test_a_finished_run_is_never_touched(tmp_path: Path) -> None:
    path = with_run(tmp_path / "run", status=COMPLETE)

    with pytest.raises(RunError, match="already holds a finished run, which is not written over"):
        RunDirectory(path)

    assert (path / "summary.json").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("process", [worker(), {"host": "another", "pid": 1, "started": 0.0}])
def test_a_run_that_may_still_go_on_is_never_touched(tmp_path: Path, process: dict[str, Any]) -> None:
    path = with_run(tmp_path / "run", status=RUNNING, process=process)

    with pytest.raises(RunError, match="is being made now"):
        RunDirectory(path)

    assert (path / "summary.json").exists()


def test_a_run_says_which_process_makes_it(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.update_manifest(status=RUNNING)

    assert json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["process"]["pid"] == os.getpid()
    with pytest.raises(RunError, match="is being made now"):
        RunDirectory(tmp_path / "run")


def test_a_finished_run_counts_only_for_its_own_configuration(tmp_path: Path) -> None:
    path = with_run(tmp_path / "run", status=COMPLETE)
    (path / "config.yaml").write_text("seed: 1  # override\n", encoding="utf-8")

    assert is_finished(path, "seed: 1  # default\n")
    with pytest.raises(RunError, match="of another configuration"):
        is_finished(path, "seed: 2\n")
    with_run(path, status=FAILED)
    assert not is_finished(path, "seed: 1\n")


def test_a_sweep_that_is_repeated_makes_only_the_runs_that_did_not_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made: list[str] = []
    dying = {"2"}

    def make(resolved: Any, path: Path, watcher: Any) -> Any:
        seed = str(resolved.settings.seed)
        made.append(seed)
        directory = RunDirectory(path)
        write_run(path, [record(0)], status=FAILED if seed in dying else COMPLETE)
        directory.write_text("config.yaml", runner.dump_config_yaml(resolved))
        if seed in dying:
            raise RunError("the server died")
        return {}

    monkeypatch.setattr(runner, "run_experiment", make)
    monkeypatch.setattr("muai_lab.report.result_table", lambda summary: _Silent())
    sweep = ["-m", "seed=1,2,3", "hydra.sweep.dir=sweep"]

    with pytest.raises(RunError, match=r"1 of 3 runs did not complete.*hydra.sweep.dir=sweep makes these again"):
        run_command.main(sweep)
    dying.clear()
    assert run_command.main(sweep) == 0

    assert made == ["1", "2", "3", "2"]
    told = capsys.readouterr().err
    assert told.count("finished before, and kept") == 2
    assert "replacing a run that did not finish" in told


class _Silent:
    def show(self, console: object) -> None:
        """Print nothing."""
