"""An event loop whose time passes only when nothing is left to do: seconds of load take milliseconds, exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Instead of waiting for the next timer, the clock is put forward to it."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual_s = 0.0
        self._poll = self._selector.select
        self._selector.select = self._advance

    def time(self) -> float:
        return self._virtual_s

    def now_ns(self) -> int:
        return round(self._virtual_s * 1e9)

    def stall(self, seconds: float) -> None:
        """Let time pass while the loop does nothing, as a long computation would."""
        self._virtual_s += seconds

    def _advance(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("deadlock: no timer and nothing to run")
        self._virtual_s += max(timeout, 0.0)
        return self._poll(0)


def run_virtual(main: Callable[[VirtualTimeLoop], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function, given the loop, in virtual time."""
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.close()
