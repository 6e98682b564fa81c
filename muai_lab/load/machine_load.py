"""The other programs that use this machine's processors during a load."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

import psutil

from muai_lab.processor import allowed_cores

_NAMED = 3
_WORTH_NAMING = 0.05  # of a core


@dataclass(frozen=True, slots=True)
class ProcessTime:
    """One process of this machine. parent: process id. cpu_s: processor time so far."""

    name: str
    parent: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class ProcessTable:
    """All processes at one moment by process id and creation time. at_s, busy_s: time, and that of all processors."""

    at_s: float
    busy_s: float
    processes: Mapping[tuple[int, float], ProcessTime]


@dataclass(frozen=True, slots=True)
class MachineLoad:
    """Processor use during a load, in cores.

    Attributes:
        cores: Cores of this machine that the process may use.
        own: The process of this generator.
        run: The other processes of the run, above all the server that it started.
        others: All other processes.
        named: The largest of the others by name.
    """

    cores: int
    own: float
    run: float
    others: float
    named: tuple[tuple[str, float], ...] = ()


def read_processes() -> ProcessTable:
    """Return all visible processes."""
    times = psutil.cpu_times()
    busy_s = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
    found = {}
    for process in psutil.process_iter(["pid", "ppid", "name", "cpu_times", "create_time"]):
        info = process.info
        if info["cpu_times"] is not None:
            spent = info["cpu_times"].user + info["cpu_times"].system
            found[info["pid"], info["create_time"]] = ProcessTime(info["name"] or "?", info["ppid"] or 0, spent)
    return ProcessTable(time.monotonic(), busy_s, found)


def load_between(before: ProcessTable, after: ProcessTable, own: int, root: int) -> MachineLoad:
    """Return the use of the processors between two moments.

    own: id of this process. root: id of the process of the run; its descendants belong to the run.
    """
    passed_s = max(after.at_s - before.at_s, 1e-3)
    parents = {pid: process.parent for (pid, _), process in after.processes.items()}
    shares = {"own": 0.0, "run": 0.0}
    others: dict[str, float] = {}
    for key, process in after.processes.items():
        since_s = before.processes[key].cpu_s if key in before.processes else 0.0
        cores = max(process.cpu_s - since_s, 0.0) / passed_s
        if key[0] == own:
            shares["own"] += cores
        elif _descends(key[0], root, parents):
            shares["run"] += cores
        else:
            others[process.name] = others.get(process.name, 0.0) + cores
    unseen = (after.busy_s - before.busy_s) / passed_s - sum(shares.values()) - sum(others.values())
    if unseen > _WORTH_NAMING:  # ended meanwhile, the kernel's own, or in other containers
        others["processes that cannot be seen from here"] = unseen
    named = sorted(((name, cores) for name, cores in others.items() if cores >= _WORTH_NAMING), key=lambda one: -one[1])
    return MachineLoad(allowed_cores(), shares["own"], shares["run"], sum(others.values()), tuple(named[:_NAMED]))


def load_since(before: ProcessTable) -> MachineLoad:
    """Return the `load_between` that moment and now, for the calling process."""
    leader = multiprocessing.parent_process()
    own = os.getpid()
    root = own if leader is None or leader.pid is None else leader.pid
    return load_between(before, _with_commands(read_processes(), before), own, root)


def described(load: MachineLoad) -> tuple[str | None, str]:
    """Return the programs that used the processors, and the remedy, as text."""
    said = []
    if load.others >= _WORTH_NAMING:
        named = ", ".join(f"{name} {cores:.1f}" for name, cores in load.named)
        said.append(f"other programs used {load.others:.1f} of {load.cores} cores" + (f" ({named})" if named else ""))
    if load.run >= _WORTH_NAMING:
        said.append(f"the server under test, on the same cores, {load.run:.1f}")
    remedy = "end the other programs, or run the load generator on cores or a machine of its own"
    if load.run > load.others:
        remedy = "leave a core to the load generator, or run it on another machine with target=endpoint"
    return " and ".join(said) or None, remedy


def _descends(pid: int, root: int, parents: Mapping[int, int]) -> bool:
    for _ in range(len(parents)):
        if pid == root:
            return True
        if pid not in parents or parents[pid] == pid:
            return False
        pid = parents[pid]
    return False


def _with_commands(table: ProcessTable, before: ProcessTable) -> ProcessTable:
    """Return the table with busy interpreters named after their program: `python` alone identifies none."""
    named = dict(table.processes)
    for key, process in table.processes.items():
        since_s = before.processes[key].cpu_s if key in before.processes else 0.0
        busy = process.cpu_s - since_s > _WORTH_NAMING * (table.at_s - before.at_s)
        if busy and process.name.startswith("python"):
            named[key] = ProcessTime(_program(key[0], process.name), process.parent, process.cpu_s)
    return ProcessTable(table.at_s, table.busy_s, named)


def _program(pid: int, name: str) -> str:
    """Return `python -m module` or `python script.py`; further arguments are not recorded."""
    try:
        words = psutil.Process(pid).cmdline()[1:]
    except psutil.Error:
        return name
    for place, word in enumerate(words):
        if word == "-m" and place + 1 < len(words):
            return f"{name} -m {words[place + 1]}"
        if word == "-c":
            return f"{name} -c"
        if not word.startswith("-"):
            return f"{name} {PurePath(word).name}"
    return name
