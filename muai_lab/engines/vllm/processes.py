"""The processes of one vLLM engine: found at its start, watched, and ended with it."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.process import BaseProcess

import psutil

_NAME = "EngineCore"  # as vLLM calls the processes that it starts through multiprocessing
_KILL_WAIT_S = 5.0
_LOOKS, _LOOK_INTERVAL_S = 200, 0.001


class EngineProcesses:
    """The engine-core processes that this process starts between `begin` and `settle`, and all their descendants."""

    def __init__(self) -> None:
        self._foreign: frozenset[BaseProcess] | None = None
        self._cores: list[BaseProcess] = []
        self._tree: list[psutil.Process] = []

    def begin(self) -> None:
        """Treat engine cores that appear from now on as this engine's. Only one engine may start at a time."""
        self._foreign = frozenset(multiprocessing.active_children())

    def settle(self) -> None:
        """End the start: engine cores that appear later belong to another engine."""
        self.note()
        self._foreign = None

    def note(self) -> None:
        """Record the present processes: once a core is dead, its descendants can no longer be found."""
        if self._foreign is not None:
            known = self._foreign.union(self._cores)
            children = (child for child in multiprocessing.active_children() if child not in known)
            self._cores += [child for child in children if child.name.startswith(_NAME)]
        for core in self._cores:
            if core.exitcode is not None:
                continue  # its id may belong to another process by now
            try:
                process = psutil.Process(core.pid)
                found = [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            self._tree += [process for process in found if process not in self._tree]

    @property
    def pids(self) -> tuple[int, ...]:
        """Ids of the recorded processes, also of those that have ended."""
        return tuple(process.pid for process in self._tree)

    def failure(self) -> str | None:
        """Return how one of them ended; None while all run."""
        ended = self._ended_core()
        if ended is not None:
            return ended
        dead = next((process for process in self._tree if not alive(process)), None)
        if dead is None:
            return None
        return self._ended_core() or f"its worker process {dead.pid} has ended"  # a core may have ended meanwhile

    def _ended_core(self) -> str | None:
        for core in self._cores:
            exitcode = _exitcode(core)
            if exitcode is not None:
                return f"its process {core.name} ({core.pid}) {_ending(exitcode)}"
        return None

    def kill(self) -> None:
        """Kill the processes that still run, and wait for their end."""
        self.note()
        for process in self._tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        for core in self._cores:
            core.join(_KILL_WAIT_S)
        psutil.wait_procs([process for process in self._tree if alive(process)], timeout=_KILL_WAIT_S)


def alive(process: psutil.Process) -> bool:
    """True if the process runs: not ended, not a zombie, and not another process with the same id."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _exitcode(core: BaseProcess) -> int | None:
    """Return its exit code; None while it runs.

    A thread of vLLM also waits for its end. If that thread reaps the process first, the system no longer knows the
    process, and for a moment its exit code is not recorded yet.
    """
    for _ in range(_LOOKS):
        if core.exitcode is not None or core.pid is None or psutil.pid_exists(core.pid):
            break
        time.sleep(_LOOK_INTERVAL_S)
    return core.exitcode


def _ending(exitcode: int) -> str:
    return f"was killed by signal {-exitcode}" if exitcode < 0 else f"ended with exit status {exitcode}"
