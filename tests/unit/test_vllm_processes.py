"""vLLM's surroundings and processes, with ordinary child processes in the place of vLLM's."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from muai_lab.engines.vllm.environment import EngineLog, start_environment
from muai_lab.engines.vllm.processes import EngineProcesses, alive


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineLog]:
    monkeypatch.delenv("VLLM_LOGGING_CONFIG_PATH", raising=False)
    log = EngineLog()
    yield log
    log.close()


def run_child(log: EngineLog, code: str) -> subprocess.CompletedProcess[str]:
    """As multiprocessing would, within the surroundings."""
    return subprocess.run([log.interpreter(), "-c", code], capture_output=True, text=True, check=False)


def test_the_environment_is_the_engines_only_while_it_starts(log: EngineLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    before = dict(os.environ)
    with start_environment(log):
        assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE", "what the user has set stays"
        assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ, "it would overrule our key"
        os.environ["LD_PRELOAD"] = "/nowhere/libgomp.so"  # as vLLM does
        del os.environ["PATH"]
    assert dict(os.environ) == before


def test_interrupts_do_not_reach_what_is_started_within(log: EngineLog) -> None:
    show = [sys.executable, "-c", "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"]
    with start_environment(log):
        inside = subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip()
    outside = subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip()
    assert (inside, outside) == ("True", "False")


def test_what_the_engines_processes_print_goes_to_the_log_and_its_first_error_is_the_cause(log: EngineLog) -> None:
    done = run_child(
        log,
        "import sys\nprint('hello')\ntry:\n    raise OSError('disk on fire')\nexcept OSError as error:\n"
        "    raise RuntimeError('engine core failed') from error",
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert log.root_cause() == "OSError: disk on fire"


def test_what_a_process_says_because_another_died_is_no_cause(log: EngineLog) -> None:
    run_child(log, "raise RuntimeError('cancelled')")
    assert log.root_cause() is None
    run_child(log, "import json; json.loads('{')")
    assert str(log.root_cause()).startswith("JSONDecodeError: Expecting property name")


def test_the_log_can_be_read_after_its_file_has_lost_its_name(log: EngineLog) -> None:
    directory = Path(log.interpreter()).parent
    run_child(log, "raise ValueError('too late')")
    log.unlink()
    assert not directory.exists()
    assert log.root_cause() == "ValueError: too late"


def test_our_own_process_logs_there_too_and_stops_when_it_is_closed(log: EngineLog) -> None:
    logging.getLogger("vllm.config").error("ValueError: not a line of its own")
    logging.getLogger("vllm.config").error("bad\nValueError: a bad config")
    assert log.root_cause() == "ValueError: a bad config"
    log.close()
    assert not [handler for handler in logging.getLogger("vllm").handlers if isinstance(handler, logging.FileHandler)]
    assert log.root_cause() is None


def test_a_logging_configuration_of_the_users_stays_in_force(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"version": 1}')
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", str(own))
    log = EngineLog()
    assert log.configuration == str(own)
    assert log.interpreter() == sys.executable
    with start_environment(log):
        assert os.environ["VLLM_LOGGING_CONFIG_PATH"] == str(own)
    log.close()
    assert own.exists()


def start_core(name: str = "EngineCore") -> BaseProcess:
    core = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), name=name, daemon=True)
    core.start()
    return core


@pytest.fixture
def engine() -> Iterator[tuple[EngineProcesses, BaseProcess]]:
    processes = EngineProcesses()
    processes.begin()
    core = start_core()
    processes.note()
    yield processes, core
    processes.kill()


def test_engine_cores_started_since_then_are_found(engine: tuple[EngineProcesses, BaseProcess]) -> None:
    processes, core = engine
    assert processes.pids == (core.pid,)
    assert processes.failure() is None


def test_children_from_before_and_those_of_others_are_left_alone() -> None:
    earlier = start_core()
    processes = EngineProcesses()
    processes.begin()
    other = start_core("ranks")
    try:
        processes.kill()
        assert processes.pids == ()
        assert earlier.is_alive()
        assert other.is_alive()
    finally:
        for core in (earlier, other):
            core.kill()
            core.join()


def test_the_core_of_an_engine_that_starts_later_is_left_alone(engine: tuple[EngineProcesses, BaseProcess]) -> None:
    processes, core = engine
    processes.settle()
    later = start_core()
    try:
        processes.kill()
        assert not core.is_alive()
        assert later.is_alive()
    finally:
        later.kill()
        later.join()


def test_a_killed_core_is_a_failure_that_names_process_and_signal(engine: tuple[EngineProcesses, BaseProcess]) -> None:
    processes, core = engine
    core.kill()
    core.join()
    assert processes.failure() == f"its process EngineCore ({core.pid}) was killed by signal {int(signal.SIGKILL)}"


def test_a_killed_core_is_named_though_another_thread_has_just_taken_note_of_its_end(
    engine: tuple[EngineProcesses, BaseProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes, core = engine
    assert core.pid is not None
    core.kill()
    os.waitpid(core.pid, 0)  # by the other thread
    assert core.exitcode is None
    popen: Any = core._popen  # type: ignore[attr-defined]
    monkeypatch.setattr("muai_lab.engines.vllm.processes.time.sleep", lambda _s: setattr(popen, "returncode", -9))

    assert processes.failure() == f"its process EngineCore ({core.pid}) was killed by signal 9"


def test_a_worker_that_ends_alone_is_named(
    engine: tuple[EngineProcesses, BaseProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes, core = engine
    monkeypatch.setattr("muai_lab.engines.vllm.processes.alive", lambda process: False)

    assert processes.failure() == f"its worker process {core.pid} has ended"


def test_killing_leaves_nothing(engine: tuple[EngineProcesses, BaseProcess]) -> None:
    processes, core = engine
    processes.kill()
    processes.kill()
    assert core.exitcode == -signal.SIGKILL


def test_before_a_start_there_is_nothing_to_fail_or_to_kill() -> None:
    processes = EngineProcesses()
    processes.kill()
    assert processes.pids == ()
    assert processes.failure() is None


def test_a_process_that_ended_is_not_alive_even_while_its_parent_has_not_taken_note() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(child.pid)
    assert alive(process)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays as a zombie
    assert process.status() == psutil.STATUS_ZOMBIE
    assert not alive(process)
    child.communicate()
    assert not alive(process)
