"""`capacity` as a user starts it, against the reference server: no limit, no chance, and Ctrl-C."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from muai_lab.analysis import load_run
from tests.integration.reference_process import reference_server
from tests.integration.started_command import Command

QUICK = (
    "workload=fixed", "arrival.rate=20", "load.warmup_s=0.2", "load.duration_s=1", "load.drain_s=3",
    "capacity.requests=20", "capacity.repeats=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that answers after 60 ms, however many ask."""
    with reference_server("--ttft-ms", "60", "--itl-ms", "1") as (address, _):
        yield address


def capacity(folder: Path, url: str, *arguments: str) -> Command:
    return Command(folder, "capacity", "target=endpoint", f"target.url={url}/v1", *QUICK, "--dir", "study", *arguments)


def test_a_server_without_a_limit_is_followed_to_the_highest_rate(url: str, tmp_path: Path) -> None:
    with capacity(tmp_path, url, "slo.e2e_ms=5000", "slo.quantile=0.9", "capacity.highest_rate=40") as search:
        assert search.end() == 0, search.errors

    assert "meets the SLO at 40.0 requests/s, and its end was not found" in search.output
    document = json.loads((tmp_path / "study" / "capacity.json").read_text())
    assert document["status"] == "complete"
    assert [probe["rate_rps"] for probe in document["probes"]] == [20.0, 40.0]
    assert (tmp_path / "study" / "report.html").is_file()
    schedules = {load_run(tmp_path / "study" / f"probe-0{n}").manifest["schedule_hash"] for n in range(2)}
    assert len(schedules) == 2


def test_a_promise_that_is_never_kept_ends_the_probes_early(url: str, tmp_path: Path) -> None:
    hopeless = ("slo.e2e_ms=30", "load.duration_s=6", "capacity.lowest_rate=15", "--json")
    with capacity(tmp_path, url, *hopeless) as search:
        assert search.end() == 1, search.errors

    document = json.loads(search.output)
    probes, capacity_rps = document["probes"], document["capacity_rps"]
    assert capacity_rps is None or capacity_rps["value"] is None
    # On a busy machine the load generator may be late in probes, which then decide nothing and are made once more.
    ended_early = [probe for probe in probes if probe["stopped"]]
    assert all(probe["stopped"].startswith("over capacity: at least") for probe in ended_early)
    assert ended_early or capacity_rps is None
    for probe in ended_early:
        assert load_run(tmp_path / "study" / probe["directory"]).status == "partial"


def test_ctrl_c_keeps_what_is_known(url: str, tmp_path: Path) -> None:
    with capacity(tmp_path, url, "slo.e2e_ms=5000", "capacity.highest_rate=5000", "load.duration_s=2") as search:
        search.wait_for("probe 1: 40 requests/s")
        search.process.send_signal(signal.SIGINT)

        assert search.end() == 130, search.errors

    assert "partial result: study/report.html" in search.errors
    document = json.loads((tmp_path / "study" / "capacity.json").read_text())
    assert (document["status"], document["ended"]) == ("partial", "interrupted")
    assert len(document["probes"]) == 1
