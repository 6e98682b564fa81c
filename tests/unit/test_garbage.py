"""The pace of garbage collection: rare in a command that loads, brief in a server that serves."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from muai_lab import __main__
from muai_lab.garbage import collect_briefly, collect_rarely
from muai_lab.server.process import _serve


@pytest.fixture(autouse=True)
def _pace() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def collections_of(objects: int) -> int:
    """How often young objects are looked through while so many are made, all of which stay."""
    before = gc.get_stats()[0]["collections"]
    kept = [[] for _ in range(objects)]  # type: ignore[var-annotated]
    after = gc.get_stats()[0]["collections"]
    assert len(kept) == objects
    return int(after - before)


def test_a_command_collects_once_for_many_objects(capsys: pytest.CaptureFixture[str]) -> None:
    collect_briefly()
    often = collections_of(100_000)

    __main__.main(["--version"])

    assert collections_of(100_000) <= 2 < 100 < often


def test_a_server_collects_briefly_from_the_moment_in_which_it_is_ready() -> None:
    paces: list[int] = []

    async def start() -> None:
        paces.append(gc.get_threshold()[0])

    async def stop() -> None: ...

    def announce(_ready: dict[str, Any]) -> None:
        paces.append(gc.get_threshold()[0])
        os.kill(os.getpid(), signal.SIGTERM)

    service: Any = SimpleNamespace(start=start, stop=stop, describe=dict, host=SimpleNamespace(loading=False))
    collect_rarely()

    assert asyncio.run(_serve(service, announce)) == 0
    assert paces == [50_000, 700]
