"""Work in a child process: exporters print, patch libraries, hold weights twice, and may be killed for memory.

The child gets one order as JSON. It writes an error that the user can mend into a file of the order's directory. Its
output is logged only if it fails otherwise.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from muai_lab.errors import EngineError, MuaiError
from muai_lab.garbage import collect_rarely

NAME = "onnx"
_FAILURE_FILE = "failure.json"

log = logging.getLogger(__name__)


def carry_out(module: str, order: Mapping[str, Any], directory: Path, *, task: str) -> None:
    """Run `python -m <module>` with the order, offline and without GPUs.

    Args:
        module: Calls `obey` when it is run.
        order: Plain data; `directory` is added to it.
        directory: An empty directory for the output of the process.
        task: The work in words, for the error: `export qwen_chat to a graph`.

    Raises:
        EngineError: If the process fails.
    """
    command = [sys.executable, "-m", module, json.dumps({**order, "directory": str(directory)})]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command,
        env=os.environ | offline,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    failure = directory / _FAILURE_FILE
    if failure.exists():
        raise EngineError(NAME, json.loads(failure.read_text(encoding="utf-8")))
    if done.returncode != 0:
        lines = done.stdout.strip().splitlines()
        last = lines[-1] if lines else f"its process ended with status {done.returncode}"
        log.error("cannot %s:\n%s", task, done.stdout)
        raise EngineError(NAME, f"cannot {task}: {last}")


def obey(order: str, work: Callable[[Mapping[str, Any], Path], None]) -> int:
    """Do the work of one order. Returns the exit status of the process.

    work: gets the fields of the order and its directory.
    """
    collect_rarely()
    fields = json.loads(order)
    directory = Path(fields["directory"])
    try:
        work(fields, directory)
    except MuaiError as error:
        reason = error.reason if isinstance(error, EngineError) else str(error)
        (directory / _FAILURE_FILE).write_text(json.dumps(reason), encoding="utf-8")
        return 2
    return 0
