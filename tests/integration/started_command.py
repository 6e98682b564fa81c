"""A command of muai_lab as a user starts it: in a process of its own, whose lines a test can wait for."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Self

import psutil

PATIENCE_S = 300  # with a command that hangs


class Command:
    """`python -m muai_lab` with these words, started in `folder`; a context at whose end it is gone."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._said: list[tuple[str, str]] = []  # stream and line, as they came
        self._ended = 0  # streams
        self._grew = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "muai_lab", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=stream, daemon=True)
            for stream in (("stdout", self.process.stdout), ("stderr", self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def output(self) -> str:
        """Its standard output so far."""
        return self._text(lambda stream: stream == "stdout")

    @property
    def errors(self) -> str:
        """Its standard error so far."""
        return self._text(lambda stream: stream == "stderr")

    @property
    def everything(self) -> str:
        """What a user has seen so far."""
        return self._text(lambda stream: True)

    def wait_for(self, text: str) -> None:
        """Block until a line with `text` was printed."""

        def said() -> bool:
            return any(text in line for _, line in self._said)

        with self._grew:
            self._grew.wait_for(lambda: said() or self._ended == len(self._readers), PATIENCE_S)
            assert said(), self.everything

    def end(self) -> int:
        """Wait until it has ended; returns the exit status."""
        status = self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join()
        return status

    def children(self) -> list[psutil.Process]:
        """All processes below it."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self.process.poll() is None:
            for process in [*self.children(), psutil.Process(self.process.pid)]:
                process.kill()
        self.end()

    def _read(self, name: str, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._grew:
                    self._said.append((name, line))
                    self._grew.notify_all()
        with self._grew:
            self._ended += 1
            self._grew.notify_all()

    def _text(self, wanted: Callable[[str], bool]) -> str:
        return "".join(line for stream, line in list(self._said) if wanted(stream))
