"""The notebook runs from top to bottom, on a named run and on the newest one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.unit.synthetic_run import simulated

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "analyse_a_run.ipynb"


def run_cells() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    return names


def test_it_analyses_the_run_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUAI_LAB_RUN", str(simulated(tmp_path / "a", duration=6.0)))

    names = run_cells()

    assert capsys.readouterr().out.startswith("valid")
    assert isinstance(names["figure"], Figure)
    assert len(names["runs"]) == 1
    assert names["comparison"].verdict == "not tested"


def test_it_takes_the_newest_run_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUAI_LAB_RUN", raising=False)
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("new", "old")):
        manifest = simulated(tmp_path / "runs" / name, duration=3.0) / "manifest.json"
        os.utime(manifest, (1_800_000_000 - age, 1_800_000_000 - age))

    assert run_cells()["path"].name == "new"


def test_it_carries_no_output() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]

    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
