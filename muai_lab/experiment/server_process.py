"""A `serve` process of our own: the very command that production runs."""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from muai_lab.errors import RunError

_LAST_LINES = 12
# An engine with processes of its own takes tens of seconds to end them on a busy machine.
STOP_S = 60.0


@dataclass(frozen=True, slots=True)
class ServerReady:
    """The addresses of a server that is ready. metrics_url: None without metrics."""

    url: str
    metrics_url: str | None


class ServerProcess:
    """A context manager: the process starts with the context and ends with it, however it is left."""

    def __init__(self, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        """arguments: Of `muai_lab serve`. environment: All variables. log: File for the server's messages."""
        self._command = [sys.executable, "-m", "muai_lab", "serve", *arguments]
        self._environment = dict(environment)
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self.stopped_cleanly: bool | None = None  # None until it was stopped

    def __enter__(self) -> ServerProcess:
        with self._log.open("w", encoding="utf-8") as log, _interrupts_held_back():
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # A session of its own: Ctrl-C in the terminal reaches only us, and we stop the server in order.
                start_new_session=True,
                preexec_fn=_set_up_child,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(grace_s=STOP_S if kind is None else 2.0)

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self._process is not None and self._process.poll() is None

    def wait_ready(self, timeout_s: float) -> ServerReady:
        """Block until the server reports that it is ready. Raises RunError with the end of its log if it does not."""
        process = self._started()
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(process, lines), daemon=True, name="server-stdout").start()
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                # Short waits: in the main thread a signal is only answered between them.
                line = lines.get(timeout=0.2)
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise RunError(f"the server was not ready after {timeout_s:.0f} s{self._end_of_log()}") from None
                continue
            if line is None:
                status = process.wait()
                raise RunError(
                    self._own_words()
                    or f"the server ended with status {status} before it was ready{self._end_of_log()}"
                )
            ready = _parse_ready(line)
            if ready is not None:
                return ready

    def failure(self) -> str | None:
        """Return why the server is gone, if it ended by itself; None while it runs."""
        if self.running:
            return None
        status = self._started().returncode
        return f"the server ended with status {status} during the run{self._end_of_log()}"

    def stop(self, *, grace_s: float) -> None:
        """Send SIGTERM, then SIGKILL to its whole session after `grace_s` seconds."""
        process = self._started()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.stopped_cleanly = process.returncode == 0
        if process.stdout is not None:
            process.stdout.close()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError("the server process was not started")
        return self._process

    def _own_words(self) -> str | None:
        """The error message with which the server's command line ended, None if it crashed."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        _, found, message = text.rpartition("\nmuai-lab: ")
        return message.strip() if found else None

    def _end_of_log(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        return "".join([f"; the end of {self._log}:", *(f"\n    {line}" for line in lines)]) if lines else ""


def _read_lines(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.put(line)
    except ValueError:
        pass  # the pipe was closed by stop()
    lines.put(None)


def _parse_ready(line: str) -> ServerReady | None:
    try:
        said = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(said, dict) or said.get("event") != "ready":
        return None
    return ServerReady(said["url"], said.get("metrics_url"))


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Deliver a Ctrl-C that comes meanwhile afterwards: in the middle of a fork Python would drop it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_up_child() -> None:
    """Let signals through again, and ask Linux to end the child with its parent: a killed runner leaves no server."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
