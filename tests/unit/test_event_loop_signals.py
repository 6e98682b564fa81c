"""Signals end a load in order, whatever callback of the loop they come into."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import cast

import pytest

from muai_lab.load.event_loop import run_on_fast_loop, signals_end

Handler = Callable[[int, FrameType | None], None]


@pytest.fixture
def terminate() -> Iterator[Handler]:
    """The handler of commands: the first SIGTERM unwinds, later ones are ignored."""

    def handler(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


async def kill_this_process_while_data_arrives(number: signal.Signals, times: int = 1) -> list[BaseException]:
    """A load that would never end, beside a connection whose callbacks send the signal."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(10):
            writer.write(data)

    class Client(asyncio.Protocol):
        left = times

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)
            self.transport.write(b"ping")

        def data_received(self, data: bytes) -> None:
            if self.left:
                self.left -= 1
                os.kill(os.getpid(), number)
            self.transport.write(data)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    load = asyncio.ensure_future(asyncio.sleep(3600))
    with signals_end(load) as raised:
        await asyncio.get_running_loop().create_connection(Client, *server.sockets[0].getsockname())
        await asyncio.wait([load], timeout=60)
    server.close()
    assert load.cancelled()
    return raised


def test_a_signal_that_comes_into_a_callback_cancels_the_load(terminate: Handler) -> None:
    (end,) = run_on_fast_loop(kill_this_process_while_data_arrives(signal.SIGTERM))

    assert isinstance(end, SystemExit)
    assert end.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # as the handler left it: later ones do not disturb


def test_a_handler_that_only_asks_lets_the_load_go_on_until_the_next() -> None:
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        asked.append(number)

    before = signal.signal(signal.SIGINT, ask)
    try:
        (end,) = run_on_fast_loop(kill_this_process_while_data_arrives(signal.SIGINT, times=2))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)

    assert asked == [signal.SIGINT]
    assert isinstance(end, KeyboardInterrupt)


def test_handlers_are_back_afterwards(terminate: Handler) -> None:
    async def short() -> None:
        with signals_end(asyncio.ensure_future(asyncio.sleep(0))):
            pass

    run_on_fast_loop(short())

    assert signal.getsignal(signal.SIGTERM) is terminate
