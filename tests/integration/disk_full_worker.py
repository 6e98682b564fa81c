"""Runs an experiment in which no file may grow any more once the load begins, as on a disk that is full.

    python disk_full_worker.py DIRECTORY LIMIT_BYTES OVERRIDE...

A process of its own, since the limit holds for all that a process writes, the log of the tests included. Prints the
RunError that ends the run.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from muai_lab.errors import RunError
from muai_lab.experiment.runner import run_experiment
from muai_lab.load.generator import LoadProgress
from muai_lab.settings.compose import compose


class FillsTheDisk:
    """Watches a run, and lets no file grow any more once the load begins."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes

    def stage(self, what: str) -> None:
        if what == "offering load":
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit_bytes, hard))

    def load(self, progress: LoadProgress) -> None:
        pass


if __name__ == "__main__":
    directory, limit_bytes, *overrides = sys.argv[1:]
    try:
        run_experiment(compose(overrides), Path(directory), FillsTheDisk(int(limit_bytes)))
    except RunError as error:
        sys.stdout.write(str(error))
