"""What the integration tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def session_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache directory of this session: begun empty, so that graphs are exported by this code, and only once.

    Processes that share the tests of a session share it, as they would a user's cache.
    """
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "session-cache"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="module")
def session_cache(session_directory: Path) -> Iterator[Path]:
    """The session's cache directory, in force for the tests of a module that asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUAI_CACHE_DIR", str(session_directory))
        yield session_directory
