"""The reference server as a user starts it, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SERVER = (sys.executable, "-m", "muai_lab", "reference-server")


@contextmanager
def reference_server(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its address and its process; it is gone afterwards."""
    with subprocess.Popen([*SERVER, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            assert ready["event"] == "ready"
            yield ready["url"], process
        finally:
            process.terminate()
