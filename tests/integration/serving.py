"""A real `muai_lab serve` process for the integration tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STOP_S = 200.0


@dataclass
class Served:
    """A server that said it is ready. log: its stderr so far."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    log_path: Path

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def metric(self, name: str) -> float | None:
        """The value of the sample that is written `name`, labels included."""
        with urllib.request.urlopen(self.ready["metrics_url"], timeout=60) as answer:
            for line in answer.read().decode().splitlines():
                if line.rpartition(" ")[0] == name:
                    return float(line.rpartition(" ")[2])
        return None

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        return self.process.wait(STOP_S)


def command(*overrides: str) -> list[str]:
    return [
        sys.executable,
        *("-m", "muai_lab", "serve", "engine=pytorch"),
        *("monitoring.server.host=127.0.0.1", "monitoring.server.port=0"),
        *("monitoring.prometheus.host=127.0.0.1", "monitoring.prometheus.port=0"),
        *overrides,
    ]


@contextmanager
def serving(folder: Path, *overrides: str) -> Iterator[Served]:
    """A server with these overrides, run in `folder`; it is gone afterwards whatever happened."""
    log_path = folder / "server.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            command(*overrides), stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=environment()
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the server ended with {process.wait()}: {log_path.read_text()}"
        yield Served(process, json.loads(line), log_path)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def environment() -> dict[str, str]:
    """Ours, without settings that would change the server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MUAI_")}
