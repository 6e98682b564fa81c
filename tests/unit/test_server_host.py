"""Loading models on demand: once for all who wait, again after a failure, and never an unknown one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from muai_lab.errors import EngineError
from muai_lab.server.host import ModelHost, State
from muai_lab.server.http_error import HttpError
from muai_lab.stack.stack import InferenceStack
from tests.unit.server_fakes import DEADLINE_S, ParrotEngine, parrot_stack


class Shop:
    """Opens stacks, and counts; while `shut`, opening waits; with `failure` set, it fails."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.failure: Exception | None = None

    def open(self, name: str) -> InferenceStack:
        self.opened.append(name)
        self.open_gate.wait(DEADLINE_S)
        if self.failure is not None:
            raise self.failure
        return parrot_stack(ParrotEngine())


def with_host(work: Callable[[ModelHost, Shop], Awaitable[None]]) -> None:
    async def run() -> None:
        shop = Shop()
        host = ModelHost(["a", "b", "a"], shop.open)
        await work(host, shop)
        await host.close()
        assert not host.stacks

    asyncio.run(run())


def test_it_is_ready_once_the_preloaded_models_are_there_and_not_before() -> None:
    async def work(host: ModelHost, shop: Shop) -> None:
        shop.open_gate.clear()
        loading = asyncio.create_task(host.preload(["a"]))
        await asyncio.sleep(0)

        assert host.state is State.LOADING
        assert host.loading
        with pytest.raises(HttpError, match="still loading") as refused:
            await host.stack("a")
        assert refused.value.status == 503

        shop.open_gate.set()
        await loading
        assert host.state is State.READY
        assert list(host.stacks) == ["a"]
        assert not host.loading

    with_host(work)


def test_a_model_is_loaded_at_its_first_request_once_for_all_who_wait() -> None:
    async def work(host: ModelHost, shop: Shop) -> None:
        await host.preload([])
        stacks = await asyncio.gather(*(host.stack("b") for _ in range(5)))

        assert shop.opened == ["b"]
        assert {id(stack) for stack in stacks} == {id(host.stacks["b"])}

    with_host(work)


def test_who_stops_waiting_for_a_load_does_not_end_it() -> None:
    async def work(host: ModelHost, shop: Shop) -> None:
        await host.preload([])
        shop.open_gate.clear()
        impatient = asyncio.create_task(host.stack("b"))
        patient = asyncio.create_task(host.stack("b"))
        await asyncio.sleep(0)

        impatient.cancel()
        shop.open_gate.set()

        assert await patient is host.stacks["b"]
        assert shop.opened == ["b"]

    with_host(work)


def test_a_failed_load_is_told_and_tried_again_by_the_next_request() -> None:
    async def work(host: ModelHost, shop: Shop) -> None:
        await host.preload([])
        shop.failure = EngineError("parrot", "no feathers")
        with pytest.raises(EngineError, match="no feathers"):
            await host.stack("b")

        shop.failure = None
        assert await host.stack("b") is host.stacks["b"]
        assert shop.opened == ["b", "b"]

    with_host(work)


def test_a_failed_preload_leaves_it_not_ready() -> None:
    async def work(host: ModelHost, shop: Shop) -> None:
        shop.failure = EngineError("parrot", "no feathers")
        with pytest.raises(EngineError, match="no feathers"):
            await host.preload(["a", "b"])

        assert host.state is State.LOADING
        assert shop.opened == ["a"]

    with_host(work)


def test_an_unknown_model_is_not_loaded() -> None:
    async def work(host: ModelHost, shop: Shop) -> None:
        await host.preload([])
        with pytest.raises(HttpError, match=r"offers 'a', 'b'$"):
            await host.stack("../../etc")

        assert shop.opened == []

    with_host(work)


def test_closing_closes_every_engine() -> None:
    async def run() -> None:
        engines = [ParrotEngine(), ParrotEngine()]
        stacks = iter([parrot_stack(engine) for engine in engines])
        host = ModelHost(["a", "b"], lambda name: next(stacks))
        await host.preload(["a", "b"])

        await host.close()

        assert [engine.closed for engine in engines] == [True, True]
        assert host.state is State.DRAINING

    asyncio.run(run())
