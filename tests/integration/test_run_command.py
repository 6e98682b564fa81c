"""`python -m muai_lab run`, as a user starts it: real server, real load, and every way in which a run can end."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from muai_lab.__main__ import main
from muai_lab.analysis import load_run
from muai_lab.settings.resolve import load_settings
from tests.integration.reference_process import reference_server
from tests.integration.started_command import Command

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


def stamps(url: str) -> list[dict[str, Any]]:
    """What the reference server answered since it was asked last."""
    with urllib.request.urlopen(f"{url}/stamps", timeout=60) as answer:
        return json.load(answer)


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=200)[1]


SECRET = "https://hooks.example/s3cr3t"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a real server that went to its end: what it left is looked at by several tests, and changed by none."""
    folder = tmp_path_factory.mktemp("finished")
    config = folder / "mine.yaml"
    config.write_text("optimization:\n  batcher:\n    max_batch_size: 3\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUAI_MON_ANOMALY_WEBHOOK_URL", SECRET)
        words = ("optimization.batcher.batch_timeout_ms=7", "monitoring.anomaly.alert_destinations=[webhook]")
        with Run(folder, f"config_file={config}", "slo=relaxed", *words) as command:
            assert command.end() == 0, command.errors
            return command


def test_a_run_measures_a_real_server_and_leaves_a_complete_directory(finished: Run) -> None:
    run = load_run(finished.directory)

    assert run.complete
    assert run.manifest["engine"]["name"] == "pytorch"
    assert run.manifest["model"]["kind"] == "embedded"
    assert (run.requests["status"] == "ok").all()
    assert run.requests["ttft_s"].gt(0).all()
    assert {"inference_requests_total", "muai_running_sequences"} <= set(run.server_metrics["name"])
    files = {path.name for path in finished.directory.iterdir()}
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
    assert "TTFT" in finished.output
    assert "report: " in finished.output


def test_the_file_in_the_directory_is_what_the_server_ran(finished: Run) -> None:
    written = finished.directory / "optimization.yaml"

    batcher = load_settings(written, environ={"MUAI_MON_ANOMALY_WEBHOOK_URL": SECRET}).settings.optimization.batcher

    assert (batcher.max_batch_size, batcher.batch_timeout_ms) == (3, 7)


def test_secrets_reach_the_server_and_no_file(finished: Run) -> None:
    for path in finished.directory.iterdir():
        assert b"s3cr3t" not in path.read_bytes(), path.name
    assert "s3cr3t" not in finished.everything


def test_a_directory_that_holds_a_finished_run_is_not_written_over(start, finished: Run) -> None:
    before = finished.manifest
    second = start(f"hydra.run.dir={finished.directory}")

    assert second.end() == 2
    assert "already holds a finished run" in second.errors
    assert finished.manifest == before


@pytest.mark.parametrize(
    ("phase", "long"),
    [
        ("preparing the model", ()),
        ("starting the server", ()),
        ("warming up", ("load.warmup_s=30",)),
    ],
)
def test_ctrl_c_before_the_measurement_stops_the_server_and_marks_the_directory_as_partial(
    start, phase: str, long: tuple[str, ...]
) -> None:
    command = start(*long)
    command.wait_for(phase)
    children = command.children()

    command.process.send_signal(signal.SIGINT)

    assert command.end() == 130, command.errors
    assert "Traceback" not in command.errors
    assert command.manifest["status"] == "partial"
    assert command.manifest["error"] == "interrupted"
    assert gone(children)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server that takes 100 ms for an answer."""
    with reference_server("--ttft-ms", "100") as (url, _):
        yield url


def test_what_was_measured_before_ctrl_c_is_kept(start, endpoint: str) -> None:
    command = start(f"target.url={endpoint}", "arrival=closed", "arrival.concurrency=4", "load.duration_s=100")
    command.wait_for("measuring")
    answered = 0
    while answered < 8:  # not only that of the probe, nor those of the warm-up alone
        answered += sum(stamp["last_token_ns"] is not None for stamp in stamps(endpoint))

    command.process.send_signal(signal.SIGINT)

    assert command.end() == 130, command.errors
    run = load_run(command.directory)
    assert run.status == "partial"
    # Four slots were always busy: what had been answered is kept as such, and what was under way as cut off.
    assert (run.requests["status"] == "ok").any()
    assert (run.requests["status"] == "cancelled").any()
    assert set(run.requests["status"]) == {"ok", "cancelled"}
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
        (("config_file=bad.yaml",), "bad.yaml, line 3, column 1"),
        (("hydra.run.dir=file/run",), "file/run"),
        (("arrival.rate=0.000001",), "schedule is empty"),
        (("target=endpoint", "target.url=http://127.0.0.1:1", "target.ready_timeout_s=0"), "127.0.0.1:1"),
        (("optimization.pytorch.dtype=fp16", "optimization.pytorch.device=cpu"), "fp16"),
    ],
)
def test_a_mistake_is_answered_with_what_would_be_right(
    arguments: tuple[str, ...],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In this process, as most of the time of one's own goes into imports; the other tests start commands for real."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("optimization:\n  batcher: [1, 2\n")
    (tmp_path / "file").write_text("in the way")

    assert main(["run", f"hydra.run.dir={tmp_path / 'run'}", *SHORT, *arguments]) == 2

    told = capfd.readouterr().err
    assert named in told
    assert "Traceback" not in told


def test_a_sweep_gives_comparable_runs_and_one_table_and_goes_on_where_it_ended(endpoint: str, tmp_path: Path) -> None:
    words = ("run", "-m", "hydra.sweep.dir=sweep", f"target.url={endpoint}", *SHORT, "batcher=latency,throughput")
    with Command(tmp_path, *words) as sweep:
        assert sweep.end() == 0, sweep.errors

    runs = [load_run(path) for path in sorted((tmp_path / "sweep").iterdir()) if path.is_dir()]
    assert len(runs) == 2
    assert all(run.complete for run in runs)
    assert len({run.manifest["schedule_hash"] for run in runs}) == 1
    comparison = sweep.output[sweep.output.rindex("TTFT") - 2000 :]
    assert "latency" in comparison or "max_batch_size" in comparison

    killed = runs[0].path / "manifest.json"
    killed.write_text(json.dumps({**runs[0].manifest, "status": "running", "process": None}))
    with Command(tmp_path, *words) as again:
        assert again.end() == 0, again.errors

    assert "replacing a run that did not finish (killed)" in again.errors
    assert again.errors.count("finished before, and kept") == 1
    assert load_run(runs[0].path).complete
    assert load_run(runs[1].path).manifest == runs[1].manifest
