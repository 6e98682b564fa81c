"""Temporary folders that are gone after every end of the process, also one that skips all cleanup.

A process that is told to stop while an engine loads cannot wait for the load: it ends at once (`os._exit`), and no
`finally` of the loading thread runs. Its folders are found again by their names, which begin with the process's number.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def scratch_prefix(purpose: str) -> str:
    """Return the beginning of the name of a temporary folder of this process. purpose: A word that names its user."""
    return f"muai-lab-{os.getpid()}-{purpose}-"


def remove_scratch() -> None:
    """Remove every temporary folder of this process."""
    for folder in Path(tempfile.gettempdir()).glob(f"{scratch_prefix('')[:-1]}*"):
        shutil.rmtree(folder, ignore_errors=True)
