"""What a request leaves behind: nothing that waits for a garbage collection, which stops every stream while it runs."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.unit.http_client import Client
from tests.unit.server_fakes import Bench, in_bench
from tests.unit.test_server_connection import GET, echo, post, silent
from tests.unit.test_server_streams import COMPLETIONS, StepwiseParrot, first_token


@contextmanager
def left_in_circles() -> Iterator[list[str]]:
    """The types of this project of which something was left that only the collector frees."""
    left: list[str] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield left
        gc.collect()
        left += sorted({type(item).__name__ for item in gc.garbage if type(item).__module__.startswith("muai_lab.")})
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_leaves_no_circles(n: int, stream: bool) -> None:
    async def hung_up(bench: Bench) -> None:
        call, request = bench.start(COMPLETIONS, prompt="abc", max_tokens=50, stream=stream, n=n)
        await (first_token(call) if stream else bench.load(running=n))
        call.hang_up()
        await request
        bench.engine.gate.set()
        await bench.load(running=0)

    async def work(bench: Bench) -> list[str]:
        with left_in_circles() as left:
            await hung_up(bench)
            await asyncio.sleep(0)
        return left

    assert in_bench(work, engine=StepwiseParrot(2)) == []


@pytest.mark.parametrize("n", [1, 3])
def test_an_answer_leaves_no_circles(n: int) -> None:
    async def work(bench: Bench) -> list[str]:
        with left_in_circles() as left:
            await bench.complete(prompt="abc", max_tokens=5, n=n)
            await bench.complete(prompt="abc", max_tokens=5, n=n, stream=True)
            await bench.complete(prompt="abc", max_tokens=5, n=1000)
        return left

    assert in_bench(work) == []


@pytest.mark.parametrize(("app", "data"), [(echo, GET), (echo, post(b"x") * 3), (silent, GET), (echo, GET[:9])])
def test_a_connection_that_is_lost_is_freed_at_once(app: Any, data: bytes) -> None:
    async def work() -> bool:
        client = Client(app)
        await client.send(data)
        connection = client.connection
        connection.connection_lost(None)
        for task in connection.tasks:
            task.cancel()
        await client.settle()
        held = weakref.ref(connection)
        del connection, client
        return held() is None

    gc.disable()
    try:
        assert asyncio.run(work())
    finally:
        gc.enable()
