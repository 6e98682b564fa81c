"""Options of a command may stand anywhere among its overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from muai_lab.commands import capacity, run, tune
from muai_lab.errors import SettingsError

EMPTY = "optimization: {}\n"


def test_capacity_takes_its_directory_between_overrides(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"arrival\.rat\b"):
        capacity.main(["slo=interactive", "--dir", str(tmp_path / "study"), "arrival.rat=8"])


def test_tune_takes_its_baseline_between_overrides(tmp_path: Path) -> None:
    (tmp_path / "today.yaml").write_text(EMPTY)

    with pytest.raises(SettingsError, match=r"tuning\.n_trails\b"):
        tune.main(["slo=interactive", "--baseline", str(tmp_path / "today.yaml"), "tuning.n_trails=8"])


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_run_takes_its_flag_for_a_sweep_between_overrides(flag: str) -> None:
    with pytest.raises(SettingsError, match=r"arrival\.rat\b"):
        run.main(["slo=interactive", flag, "arrival.rat=8,9"])
