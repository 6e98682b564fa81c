"""The server starts of a capacity study: one for the search, and a fresh one for each long probe if that is asked."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from muai_lab.experiment.directory import RunDirectory
from muai_lab.experiment.system_under_test import SystemUnderTest, open_system
from muai_lab.settings.dump import dump_optimization_yaml

if TYPE_CHECKING:
    from muai_lab.experiment.runner import RunWatcher
    from muai_lab.settings.lab import LabSettings

FIRST = "server"


class Servers:
    """The servers of the probes, one at a time. The first starts when a probe needs it; the last ends with the context.

    start_s: Duration of the last start, seconds.
    """

    def __init__(self, settings: LabSettings, path: Path, watcher: RunWatcher) -> None:
        self.start_s = 0.0
        self._settings = settings
        self._path = path
        self._watcher = watcher
        self._current = ExitStack()
        self._system: SystemUnderTest | None = None
        self._name = FIRST

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return bool(self._current.__exit__(kind, error, trace))

    @property
    def restarts(self) -> bool:
        """True if each long probe gets a server of its own."""
        return self._settings.capacity.restarts and self._settings.target.kind != "endpoint"

    def name_of(self, number: int, *, edge: bool) -> str:
        """Return the directory of the server that a probe is offered to."""
        return f"{FIRST}-{number:02d}" if edge and self.restarts else FIRST

    def serving(self, name: str) -> SystemUnderTest:
        """Return the server of this name; the one before is stopped. Raises RunError, EngineError, ModelError."""
        if self._system is None or self._name != name:
            self._system = None
            self._current.close()
            self._system = self._start(name)
            self._name = name
        return self._system

    def _start(self, name: str) -> SystemUnderTest:
        directory = RunDirectory(self._path / name)
        directory.write_text("optimization.yaml", dump_optimization_yaml(self._settings))
        self._watcher.stage(f"starting the {self._settings.target.kind}")
        begun = time.monotonic()
        system = self._current.enter_context(open_system(self._settings, directory, os.environ))
        self.start_s = time.monotonic() - begun
        return system
