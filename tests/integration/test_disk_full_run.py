"""A run whose records cannot be written: files may not grow beyond a limit, as on a disk that is full."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.integration.reference_process import reference_server

LIMIT_BYTES = 24 * 1024
WORKER = Path(__file__).parent / "disk_full_worker.py"


def test_a_run_on_a_full_disk_is_partial_and_says_why(tmp_path: Path) -> None:
    with reference_server("--ttft-ms", "2", "--itl-ms", "1") as (url, _):
        overrides = [
            *["target=endpoint", f"target.url={url}", "target.model=reference", "workload=fixed"],
            *["workload.prompt_tokens.value=2", "workload.output_tokens.value=64", "arrival=constant"],
            *["arrival.rate=200", "load.warmup_s=0", "load.duration_s=2"],
        ]
        command = [sys.executable, str(WORKER), str(tmp_path / "run"), str(LIMIT_BYTES), *overrides]
        worker = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)

    assert worker.returncode == 0, worker.stderr
    assert re.search(r"cannot write .*requests\.parquet: .*; free space or choose another", worker.stdout)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "partial"
    assert "requests.parquet" in manifest["error"]
    assert not list((tmp_path / "run").glob(".*.parquet-*"))
