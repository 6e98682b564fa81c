"""`python -m muai_lab run`, as a user starts it: real server, real load, and every way in which a run can end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from started_command import Command

from muai_lab.analysis import load_run

SHORT = ("engine=pytorch", "load.warmup_s=0.5", "load.duration_s=1.5", "arrival=poisson", "arrival.rate=10")


class Run(Command):
    """A short `run`. directory: of the run."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.directory = folder / "run"
        super().__init__(folder, "run", f"hydra.run.dir={self.directory}", *SHORT, *arguments)

    @property
    def manifest(self) -> dict:
        return json.loads((self.directory / "manifest.json").read_text())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    with ExitStack() as started:

        def run(*arguments: str) -> Run:
            return started.enter_context(Run(tmp_path, *arguments))

        yield run


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


def test_a_run_measures_a_real_server_and_leaves_a_complete_directory(start) -> None:
    command = start("slo=relaxed")

    assert command.end() == 0, command.errors

    run = load_run(command.directory)
    assert run.complete
    assert run.manifest["engine"]["name"] == "pytorch"
    assert run.manifest["model"]["kind"] == "embedded"
    assert (run.requests["status"] == "ok").all()
    assert run.requests["ttft_s"].gt(0).all()
    assert {"inference_requests_total", "muai_running_sequences"} <= set(run.server_metrics["name"])
    files = {path.name for path in command.directory.iterdir()}
    assert files == {
        "config.yaml",
        "optimization.yaml",
        "manifest.json",
        "schedule.parquet",
        "requests.parquet",
        "server_metrics.parquet",
        "summary.json",
        "report.html",
        "server.log",
    }
    assert "TTFT" in command.output
    assert "report: " in command.output


def test_the_schedule_of_a_run_depends_on_its_seed_alone(start, tmp_path: Path) -> None:
    commands = [
        start("target=inprocess", f"seed={seed}", f"hydra.run.dir={tmp_path / str(index)}")
        for index, seed in enumerate((1, 1, 2))
    ]
    for command in commands:
        assert command.end() == 0, command.errors
    hashes = [load_run(tmp_path / str(index)).manifest["schedule_hash"] for index in range(3)]

    assert hashes[0] == hashes[1] != hashes[2]


def test_the_file_in_the_directory_is_what_the_server_ran(start, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("optimization:\n  batcher:\n    max_batch_size: 3\n")

    command = start(f"config_file={config}", "optimization.batcher.batch_timeout_ms=7")

    assert command.end() == 0, command.errors
    again = subprocess.run(
        [sys.executable, "-m", "muai_lab", "config", "check", command.directory / "optimization.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    written = (command.directory / "optimization.yaml").read_text()
    assert "max_batch_size: 3" in written
    assert "batch_timeout_ms: 7" in written


def test_secrets_reach_the_server_and_no_file(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUAI_MON_ANOMALY_WEBHOOK_URL", "https://hooks.example/s3cr3t")

    command = start("monitoring.anomaly.alert_destinations=[webhook]")

    assert command.end() == 0, command.errors
    for path in command.directory.iterdir():
        assert b"s3cr3t" not in path.read_bytes(), path.name
    assert "s3cr3t" not in command.errors + command.output


@pytest.mark.parametrize(
    ("phase", "long"),
    [
        ("preparing the model", ()),
        ("starting the server", ()),
        ("warming up", ("load.warmup_s=30",)),
        ("measuring", ("load.duration_s=30",)),
    ],
)
def test_ctrl_c_stops_the_server_and_marks_the_directory_as_partial(start, phase: str, long: tuple[str, ...]) -> None:
    command = start(*long)
    command.wait_for(phase)
    children = command.children()

    command.process.send_signal(signal.SIGINT)

    assert command.end() == 130, command.errors
    assert "Traceback" not in command.errors
    assert command.manifest["status"] == "partial"
    assert command.manifest["error"] == "interrupted"
    assert gone(children)


def test_what_was_measured_before_ctrl_c_is_kept(start) -> None:
    command = start("load.duration_s=60")
    command.wait_for("measuring")

    command.process.send_signal(signal.SIGINT)

    assert command.end() == 130, command.errors
    run = load_run(command.directory)
    assert run.status == "partial"
    assert (run.requests["status"] == "ok").any()
    assert (run.requests["status"] == "cancelled").any()
    assert (command.directory / "report.html").is_file()


def test_sigterm_ends_a_run_like_ctrl_c(start) -> None:
    command = start("load.duration_s=60")
    command.wait_for("measuring")
    children = command.children()

    command.process.terminate()

    assert command.end() == 143, command.errors
    assert command.manifest["status"] == "partial"
    assert gone(children)
    assert not load_run(command.directory).requests.empty


def test_a_killed_run_never_looks_finished_and_leaves_no_server(start) -> None:
    command = start("load.duration_s=60")
    command.wait_for("measuring")
    children = command.children()

    command.process.kill()
    command.end()

    assert gone(children)
    assert command.manifest["status"] == "running"
    assert load_run(command.directory).status == "partial"


def test_a_server_that_dies_fails_the_run_and_says_so(start) -> None:
    command = start("load.duration_s=60")
    command.wait_for("measuring")

    for child in command.children():
        child.kill()

    assert command.end() == 2, command.errors
    assert "the server ended with status -9" in command.errors
    assert command.manifest["status"] == "failed"
    assert not load_run(command.directory).requests.empty


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("engine=pytorhc",), "pytorch"),
        (("model=qwen_chatt",), "qwen_chat"),
        (("model.name=no_such_model",), "qwen_chat"),
        (("batchr=latency",), "batcher"),
        (("arrival.rat=8",), "arrival.rate"),
        (("optimization.batcher.max_batch_size=0",), "max_batch_size"),
        (("config_file=nowhere.yaml",), "nowhere.yaml"),
        (("arrival.rate=0.000001",), "schedule is empty"),
        (("target=endpoint", "target.url=http://127.0.0.1:1"), "127.0.0.1:1"),
        (("optimization.pytorch.dtype=fp16", "optimization.pytorch.device=cpu"), "fp16"),
    ],
)
def test_a_mistake_is_answered_with_what_would_be_right(start, arguments: tuple[str, ...], named: str) -> None:
    command = start(*arguments)

    assert command.end() == 2, command.errors
    assert named in command.errors
    assert "Traceback" not in command.errors


def test_a_broken_configuration_file_is_named_with_line_and_column(start, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("optimization:\n  batcher: [1, 2\n")

    command = start("config_file=bad.yaml")

    assert command.end() == 2
    assert "bad.yaml:3:1" in command.errors or "line 3" in command.errors


def test_a_directory_that_cannot_be_made_is_refused(start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    command = start(f"hydra.run.dir={tmp_path / 'file' / 'run'}")

    assert command.end() == 2, command.errors
    assert str(tmp_path / "file") in command.errors
    assert "Traceback" not in command.errors


def test_a_directory_that_holds_a_run_is_not_written_over(start) -> None:
    assert start("target=inprocess").end() == 0
    second = start("target=inprocess")

    assert second.end() == 2
    assert "already holds a finished run" in second.errors


def test_a_sweep_over_two_batchers_gives_two_comparable_runs_and_one_table(tmp_path: Path) -> None:
    sweep = subprocess.run(
        [
            sys.executable,
            "-m",
            "muai_lab",
            "run",
            "-m",
            f"hydra.sweep.dir={tmp_path}",
            *SHORT,
            "batcher=latency,throughput",
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert sweep.returncode == 0, sweep.stderr
    runs = [load_run(path) for path in sorted(tmp_path.iterdir()) if path.is_dir()]
    assert len(runs) == 2
    assert all(run.complete for run in runs)
    assert len({run.manifest["schedule_hash"] for run in runs}) == 1
    comparison = sweep.stdout[sweep.stdout.rindex("TTFT") - 2000 :]
    assert "latency" in comparison or "max_batch_size" in comparison
