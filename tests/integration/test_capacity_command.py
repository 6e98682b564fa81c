"""`capacity` as a user starts it, against the reference server: no limit, no chance, and Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muai_lab.analysis import load_run

QUICK = (
    "workload=fixed", "arrival.rate=20", "load.warmup_s=0.2", "load.duration_s=1", "load.drain_s=3",
    "capacity.requests=20", "capacity.repeats=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that answers after 60 ms, however many ask."""
    command = [sys.executable, "-m", "muai_lab.load.reference_server", "--ttft-ms", "60", "--itl-ms", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["url"]
    process.terminate()
    process.wait()
    process.stdout.close()


def command(url: str, *arguments: str) -> list[str]:
    target = ("target=endpoint", f"target.url={url}/v1")
    return [sys.executable, "-m", "muai_lab", "capacity", *target, *QUICK, *arguments]


def test_a_server_without_a_limit_is_followed_to_the_highest_rate(url: str, tmp_path: Path) -> None:
    made = subprocess.run(
        command(url, "slo.e2e_ms=5000", "slo.quantile=0.9", "capacity.highest_rate=40", "--dir", "study"),
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip

    assert made.returncode == 0, made.stderr
    assert "keeps the promise at 40.0 requests/s, and its end was not found" in made.stdout
    document = json.loads((tmp_path / "study" / "capacity.json").read_text())
    assert document["status"] == "complete"
    assert [probe["rate_rps"] for probe in document["probes"]] == [20.0, 40.0]
    assert (tmp_path / "study" / "report.html").is_file()
    schedules = {load_run(tmp_path / "study" / f"probe-0{n}").manifest["schedule_hash"] for n in range(2)}
    assert len(schedules) == 2


def test_a_promise_that_is_never_kept_ends_the_probes_early(url: str, tmp_path: Path) -> None:
    made = subprocess.run(
        command(url, "slo.e2e_ms=30", "load.duration_s=20", "capacity.lowest_rate=15", "--json", "--dir", "study"),
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip

    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    assert document["capacity_rps"]["value"] is None
    (probe,) = document["probes"]
    assert probe["stopped"].startswith("over capacity: at least")
    assert load_run(tmp_path / "study" / "probe-00").status == "partial"


def test_ctrl_c_keeps_what_is_known(url: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(url, "slo.e2e_ms=5000", "capacity.highest_rate=5000", "load.duration_s=2", "--dir", "study"),
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("probe 1: 40 requests/s"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    process.stderr.close()

    assert process.wait(60) == 130
    assert "partial result: study/report.html" in rest
    document = json.loads((tmp_path / "study" / "capacity.json").read_text())
    assert (document["status"], document["ended"]) == ("partial", "interrupted")
    assert len(document["probes"]) == 1
