"""One time limit for all requests of a load, with a single timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

from muai_lab.load.precise_timer import PreciseTimer


class TimeLimit:
    """`asyncio.timeout` for many tasks that share one limit: `with limit:` raises TimeoutError if its body exceeds it.

    All limits are equally long, so they expire in the order in which they began. The timer checks only the oldest.
    A task has one body at a time, and must not have been cancelled before.
    """

    def __init__(self, limit_s: float, timer: PreciseTimer, clock: Callable[[], int]) -> None:
        """clock: nanoseconds, the clock of `timer`."""
        self._limit_ns = round(limit_s * 1e9)
        self._timer = timer
        self._clock = clock
        self._due_ns: dict[asyncio.Task[Any], int] = {}  # of the bodies that run, the oldest first
        self._armed = False

    def __enter__(self) -> None:
        due_ns = self._due_ns[_this_task()] = self._clock() + self._limit_ns
        if not self._armed:
            self._arm(due_ns)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        task = _this_task()
        if self._due_ns.pop(task, None) is not None:
            return
        # The timer cancelled the task. If other code cancelled it too, it is not only late.
        if task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _arm(self, due_ns: int) -> None:
        self._armed = True
        self._timer.call_at(due_ns, self._cancel_late)

    def _cancel_late(self) -> None:
        now_ns = self._clock()
        self._armed = False
        for task, due_ns in tuple(self._due_ns.items()):
            if due_ns > now_ns:
                self._arm(due_ns)
                return
            del self._due_ns[task]
            task.cancel()


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    return task
