"""The environment of vLLM's start: variables, signals and logging that it does not take as arguments."""

from __future__ import annotations

import json
import logging
import logging.config
import multiprocessing
import multiprocessing.spawn
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import IO

from muai_lab.scratch import scratch_prefix

SERVER_VARIABLE = "MUAI_LAB_VLLM_SERVER"
"""Id of the process that started the engine, for `server_watch` in the engine's workers."""

_FIXED = {
    # No telemetry, no network: models are local directories.
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    # A fork of a process with an event loop and threads inherits locks that are never released.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
}
_UNLESS_SET = {
    # Threads that spin while they wait take processor time from those they wait for: with a thread per core, two cores
    # had only a fifth to a seventh of the tokens per second.
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
_UNSET = (
    "VLLM_CPU_KVCACHE_SPACE",  # would override optimization.cache.max_memory_mb
)
_ERROR = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*(?:Error|Exception|Exit)): (?=\S)(.+)$", re.MULTILINE)

# Errors that one process reports because another has died.
_CONSEQUENCES = (
    ("EngineDeadError", "EngineCore encountered an issue. See stack trace (above) for the root cause."),
    ("RuntimeError", "cancelled"),
)


class EngineLog:
    """vLLM's own log, of all its processes, in a file: it stays off our terminal, and explains failures.

    The file has a name only until the engine has started and every process has opened it, so nothing of it is left
    however the processes end. If the user has configured vLLM's logging (VLLM_LOGGING_CONFIG_PATH), that stays in use.
    """

    def __init__(self) -> None:
        self.configuration = os.environ.get("VLLM_LOGGING_CONFIG_PATH")
        self._directory: Path | None = None
        self._python: Path | None = None
        self._reader: IO[str] | None = None
        if self.configuration:
            return
        self._directory = Path(tempfile.mkdtemp(prefix=scratch_prefix("vllm")))
        path = self._directory / "engine.log"
        level = os.environ.get("VLLM_LOGGING_LEVEL", _UNLESS_SET["VLLM_LOGGING_LEVEL"]).upper()
        content = {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(asctime)s %(processName)s %(levelname)s %(name)s: %(message)s"}},
            "handlers": {"file": {"class": "logging.FileHandler", "filename": str(path), "formatter": "line"}},
            "loggers": {"vllm": {"handlers": ["file"], "level": level, "propagate": False}},
        }
        configuration = self._directory / "logging.json"
        configuration.write_text(json.dumps(content), encoding="utf-8")
        self.configuration = str(configuration)
        self._python = self._directory / "python"
        self._python.write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@" >>{shlex.quote(str(path))} 2>&1\n', encoding="utf-8"
        )
        self._python.chmod(0o700)
        # Configured here, because the import of vLLM already logs.
        logging.config.dictConfig(content)
        self._reader = path.open(encoding="utf-8", errors="replace")

    def interpreter(self) -> str:
        """Return the Python for vLLM's processes: one whose output goes to the log.

        Some of their output does not go through logging: that of libraries and crashes, and before its configuration.
        """
        usable = self._python is not None and os.access(self._python, os.X_OK)  # false if /tmp is mounted noexec
        return str(self._python) if usable else sys.executable

    def root_cause(self) -> str | None:
        """Return the first error in the log, which is that of the innermost process; None if there is none."""
        if self._reader is None:
            return None
        self._reader.seek(0)
        errors = _ERROR.findall(self._reader.read())
        return next((f"{name}: {text.strip()}" for name, text in errors if (name, text) not in _CONSEQUENCES), None)

    def unlink(self) -> None:
        """Remove the name of the file, once the engine's processes have opened it."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def close(self) -> None:
        """Stop logging to it and reading it."""
        self.unlink()
        if self._reader is None:
            return
        logger = logging.getLogger("vllm")
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler) and handler.baseFilename == self._reader.name:
                logger.removeHandler(handler)
                handler.close()
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())  # drops what vLLM's threads log at their end
        self._reader.close()
        self._reader = None


@contextmanager
def start_environment(log: EngineLog) -> Iterator[None]:
    """Set the environment in which vLLM is imported and started.

    The processes that it starts inherit and keep it. Afterwards this process gets its own back: vLLM also sets
    variables (LD_PRELOAD among them) that would reach every other process that we start. Interrupts from the terminal
    go to all processes of a group. vLLM's are started with SIGINT blocked, so that the server can still finish its
    requests; SIGTERM ends them.
    """
    before, interpreter = dict(os.environ), multiprocessing.spawn.get_executable()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        os.environ.update(_FIXED)
        for name, value in _UNLESS_SET.items():
            os.environ.setdefault(name, value)
        for name in _UNSET:
            os.environ.pop(name, None)
        os.environ[SERVER_VARIABLE] = str(os.getpid())
        os.environ["VLLM_LOGGING_CONFIG_PATH"] = log.configuration or ""
        # Python's helper process for shared memory outlives the engine, so it does not get the log's interpreter. It
        # is started before SIGINT is blocked, because its start unblocks SIGINT.
        resource_tracker.ensure_running()
        multiprocessing.set_executable(log.interpreter())
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        multiprocessing.set_executable(interpreter)
        _restore(before)


def _restore(before: Mapping[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
