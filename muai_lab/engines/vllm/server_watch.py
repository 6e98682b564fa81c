"""Imported by vLLM's worker processes only: ends the engine when the server that started it is gone.

vLLM's engine process does not detect that its parent was killed; it would stay, with all its memory, forever. vLLM
imports a class of ours into each worker (`worker_extension_cls`). That is the only place in its processes where our
code runs, hence the work at import.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import psutil

from muai_lab.engines.vllm.environment import SERVER_VARIABLE
from muai_lab.engines.vllm.processes import alive

INTERVAL_S = 0.5
GRACE_S = 10.0  # vLLM takes seconds to end its workers


class ServerWatch:
    """The class that vLLM mixes into its worker; it only causes the import of this module."""


def watch(server: psutil.Process, engine_pid: int | None) -> None:
    """Wait for the end of `server`, then end the engine process (None: it is this one) and this one."""
    while alive(server):
        time.sleep(INTERVAL_S)
    if engine_pid is not None and os.getppid() == engine_pid:
        os.kill(engine_pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while os.getppid() == engine_pid and time.monotonic() < deadline:
            time.sleep(INTERVAL_S)
        if os.getppid() == engine_pid:
            os.kill(engine_pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _start() -> None:
    pid = os.environ.get(SERVER_VARIABLE)
    parent = multiprocessing.parent_process()
    if pid is None or parent is None or parent.pid is None:
        return  # not a worker of ours
    engine_pid = None if parent.pid == int(pid) else parent.pid
    try:
        server = psutil.Process(int(pid))
    except psutil.NoSuchProcess:
        os.kill(engine_pid or os.getpid(), signal.SIGKILL)
        return
    threading.Thread(target=watch, args=(server, engine_pid), name="muai-server-watch", daemon=True).start()


_start()
