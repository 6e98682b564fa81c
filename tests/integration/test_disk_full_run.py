"""A run whose records cannot be written: files may not grow beyond a limit, as on a disk that is full."""

from __future__ import annotations

import asyncio
import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from muai_lab.errors import RunError
from muai_lab.experiment.runner import run_experiment
from muai_lab.load.generator import LoadProgress
from muai_lab.load.reference_server import ReferenceOptions, ReferenceServer
from muai_lab.settings.compose import compose

LIMIT_BYTES = 24 * 1024


@contextmanager
def reference_server() -> Iterator[str]:
    """On an event loop of its own in a thread; gives its address."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    server = ReferenceServer(ReferenceOptions(ttft_ms=2.0, itl_ms=1.0))
    try:
        yield asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)


class FillsTheDisk:
    """Watches a run, and lets no file grow any more once the load begins."""

    def stage(self, what: str) -> None:
        if what == "offering load":
            resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def load(self, progress: LoadProgress) -> None:
        pass


@pytest.fixture
def limit_restored() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_on_a_full_disk_is_partial_and_says_why(tmp_path: Path, limit_restored: None) -> None:
    with reference_server() as url:
        resolved = compose(
            [
                *["target=endpoint", f"target.url={url}", "target.model=reference", "workload=fixed"],
                *["workload.prompt_tokens.value=2", "workload.output_tokens.value=64", "arrival=constant"],
                *["arrival.rate=200", "load.warmup_s=0", "load.duration_s=2"],
            ]
        )
        with pytest.raises(RunError, match=r"cannot write .*requests\.parquet: .*; free space or choose another"):
            run_experiment(resolved, tmp_path / "run", FillsTheDisk())

    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "partial"
    assert "requests.parquet" in manifest["error"]
    assert not list((tmp_path / "run").glob(".*unfinished"))
