"""Wake-ups at a nanosecond time: by a timer of the kernel if there is one, else by the event loop's.

uvloop rounds its timers to whole milliseconds, so every request would be late by 0.5 ms on average. A timerfd (Linux)
fires within microseconds. It is a readable file for the loop, exactly like the socket of an answer.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC if sys.platform == "linux" else 0
_ABSOLUTE = 1


class PreciseTimer(Protocol):
    """Calls back and wakes tasks at times on the load's clock, never before."""

    @property
    def clock(self) -> Callable[[], int]:
        """The load's clock, nanoseconds."""

    def call_at(self, due_ns: int, callback: Callable[[], None]) -> None:
        """Call at `due_ns`, or as soon after as the loop allows; never after `close`.

        A time in the past is called after everything that the loop finds ready, also if a callback requests it.
        """

    async def sleep_until(self, due_ns: int) -> None:
        """Return at `due_ns`, or as soon after as the loop allows; without a yield if it is past."""

    def close(self) -> None:
        """Release the timer."""


class LoopTimer:
    """The event loop's own timers; correct on any clock that the loop follows."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self._loop = asyncio.get_running_loop()
        self._handles: set[asyncio.TimerHandle] = set()

    def call_at(self, due_ns: int, callback: Callable[[], None]) -> None:
        def fire() -> None:
            self._handles.discard(handle)
            if self.clock() < due_ns:  # uvloop may wake half a millisecond early
                self.call_at(due_ns, callback)
            else:
                callback()

        handle = self._loop.call_later(max(due_ns - self.clock(), 0) * 1e-9, fire)
        self._handles.add(handle)

    async def sleep_until(self, due_ns: int) -> None:
        while (left_ns := due_ns - self.clock()) > 0:  # noqa: ASYNC110 (uvloop may wake half a millisecond early)
            await asyncio.sleep(left_ns * 1e-9)

    def close(self) -> None:
        for handle in self._handles:
            handle.cancel()
        self._handles.clear()


class KernelTimer:
    """One timerfd for all waits, armed for the earliest. Its clock is `time.monotonic_ns`."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        """Raises OSError if the kernel has no timer left."""
        self.clock = time.monotonic_ns
        self._libc = libc
        self._file = libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._file, self._fired)
        self._waits: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._armed_ns: int | None = None
        self._closed = False

    def call_at(self, due_ns: int, callback: Callable[[], None]) -> None:
        heapq.heappush(self._waits, (due_ns, next(self._order), callback))
        if self._armed_ns is None or due_ns < self._armed_ns:
            self._arm(due_ns)

    async def sleep_until(self, due_ns: int) -> None:
        if due_ns <= time.monotonic_ns():
            return
        woken: asyncio.Future[None] = self._loop.create_future()

        def wake() -> None:
            if not woken.done():  # the task that waits may have been cancelled
                woken.set_result(None)

        self.call_at(due_ns, wake)
        await woken

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._waits.clear()
            self._loop.remove_reader(self._file)
            os.close(self._file)

    def _fired(self) -> None:
        try:
            os.read(self._file, 8)
        except BlockingIOError:
            return  # armed again in the meantime
        self._armed_ns = None
        now_ns, due = time.monotonic_ns(), []
        while self._waits and self._waits[0][0] <= now_ns:
            due.append(heapq.heappop(self._waits)[2])
        for callback in due:
            if not self._closed:
                callback()
        if self._waits and self._waits[0][0] != self._armed_ns and not self._closed:
            self._arm(self._waits[0][0])

    def _arm(self, due_ns: int) -> None:
        self._armed_ns = due_ns
        seconds, nanoseconds = divmod(max(due_ns, 1), 1_000_000_000)  # zero would disarm it
        self._libc.timerfd_settime(self._file, _ABSOLUTE, _Spec((0, 0), (seconds, nanoseconds)), None)


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Spec(ctypes.Structure):
    _fields_ = (("interval", _Time), ("value", _Time))


def precise_timer(clock: Callable[[], int]) -> PreciseTimer:
    """Return the best timer for a clock in nanoseconds; needs a running loop. The caller closes it."""
    if clock is time.monotonic_ns and (libc := _libc()) is not None:
        try:
            return KernelTimer(libc)
        except OSError:
            pass  # no open file is left; connections will report that
    return LoopTimer(clock)


def _libc() -> ctypes.CDLL | None:
    """Return the C library with its timerfd functions declared, None if it has none."""
    if sys.platform != "linux":
        return None
    libc: Any = ctypes.CDLL(None, use_errno=True)
    try:
        libc.timerfd_create.argtypes = (ctypes.c_int, ctypes.c_int)
        libc.timerfd_settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Spec), ctypes.c_void_p)
    except AttributeError:
        return None
    return libc  # type: ignore[no-any-return]
