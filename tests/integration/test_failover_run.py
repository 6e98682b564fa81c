"""vLLM's engine process is killed under load: PyTorch takes over, and every request is accounted for."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil

from muai_lab.analysis import load_run
from tests.integration.started_command import Command


def engine_core(processes: list[psutil.Process]) -> psutil.Process:
    """vLLM's engine process among them: the one that is named after the engine."""
    for process in processes:
        if "EngineCore" in process.name() or "EngineCore" in " ".join(process.cmdline()):
            return process
    raise AssertionError([process.cmdline() for process in processes])


def test_a_killed_vllm_hands_over_to_pytorch_and_loses_no_request(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with Command(
        tmp_path,
        *("run", f"hydra.run.dir={directory}", "optimization.engine_preference=[vllm,pytorch]"),
        *("workload=ragged", "arrival=closed", "arrival.concurrency=8"),
        *("load.warmup_s=1", "load.duration_s=8", "load.drain_s=60"),
    ) as command:
        command.wait_for("measuring")
        os.kill(engine_core(command.children()).pid, signal.SIGKILL)
        assert command.end() == 0, command.errors

    run = load_run(directory)
    assert run.manifest["engine"]["name"] == "pytorch"
    assert run.manifest["skipped_engines"][0][0] == "vllm"
    assert command.output.splitlines()[0].startswith("NOT VALID, engine changed: pytorch took over from vllm")
    statuses = run.requests["status"].value_counts().to_dict()
    assert set(statuses) <= {"ok", "error"}, statuses
    errors_seen = run.requests.loc[run.requests["status"] == "error", "error"]
    # At most the eight that were under way may have been cut off; the rest ended well, on one engine or the other.
    assert len(errors_seen) <= 8
    assert errors_seen.str.contains("after part of the output was streamed").all(), list(errors_seen)
    after = run.requests.iloc[-1]
    assert after["status"] == "ok"
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["validity"]["verdict"] == "engine changed"
