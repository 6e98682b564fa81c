"""The process that writes a run or measures a trial, recorded so that others can see later if it has ended."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import psutil


def worker() -> dict[str, Any]:
    """Describe this process, so that another one can find out later if it still lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def is_gone(who: Mapping[str, Any] | None) -> bool:
    """True if a process of this machine has ended; False for one of another machine, of which nothing is known."""
    if not who or who.get("host") != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(int(who["pid"])).create_time() - float(who["started"])) > 1.0
    except psutil.NoSuchProcess:
        return True
