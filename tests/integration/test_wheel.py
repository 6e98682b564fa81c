"""The package works from a wheel, in a folder that holds nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))


def call(*arguments: str | Path, cwd: Path, path: Path | None = None) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MUAI_", "PYTHONPATH"))}
    if path is not None:
        environ["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel of this checkout was installed, without its dependencies."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    call("-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, ROOT, cwd=ROOT)
    (wheel,) = wheels.glob("*.whl")
    call("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel, cwd=wheels)
    return target


def test_the_configuration_groups_come_with_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = call("-c", "import muai_lab; print(muai_lab.__file__)", cwd=tmp_path, path=installed)
    shown = call("-m", "muai_lab", "config", "show", "--origin", "batcher=latency", cwd=tmp_path, path=installed)

    assert where.startswith(str(installed))
    assert "optimization.batcher.max_batch_size = 8  # batcher=latency" in shown


COMPOSED = """
import sys
from muai_lab.__main__ import main
for experiment in sys.argv[1:]:
    assert main(["run", "--cfg", "all", *experiment.split()]) == 0
"""


def first_job(experiment: str) -> str:
    """The words that ask for the first of an experiment's jobs alone."""
    content = yaml.safe_load((ROOT / "experiments" / f"{experiment}.yaml").read_text())
    swept = content["hydra"]["sweeper"]["params"]
    return " ".join(
        [f"experiment={experiment}", *(f"{key}={str(values).split(',')[0]}" for key, values in swept.items())]
    )


def test_experiments_come_with_the_wheel(installed: Path, tmp_path: Path) -> None:
    """All in one process, as most of the time of one's own goes into imports."""
    jobs = list(map(first_job, EXPERIMENTS))
    shown, meant = (call("-c", COMPOSED, *jobs, cwd=tmp_path, path=path) for path in (installed, ROOT))

    assert shown.count("sweeper:\n") >= len(EXPERIMENTS)
    assert shown.replace(str(installed / "muai_lab" / "_hydra"), str(ROOT / "conf")) == meant


def test_run_tells_its_groups_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    shown = call("-m", "muai_lab", "run", "--help", cwd=tmp_path, path=installed)

    assert f"experiment: {', '.join(EXPERIMENTS)}\n" in shown
