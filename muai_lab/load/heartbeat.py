"""The load generator's own lateness, measured by a beat of its event loop.

A beat is due every 5 ms. Bytes of an answer that arrived at its due time would have been read as late as the beat runs:
both wait for a processor, for the same work, and for the same garbage collection.

A stall over several beats counts once for each, with its whole length each time. Answers come in step with the
generator: it sends, is interrupted, and leaves their bytes unread from the beginning of the stall. The later beats are
recorded after the loop has read the bytes that came before them: a thread without a processor is also interrupted
between two reads.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muai_lab.load.precise_timer import PreciseTimer

INTERVAL_NS = 5_000_000


@dataclass(frozen=True, slots=True)
class LoopTiming:
    """The thread of the loop in the measurement window.

    Attributes:
        lateness_s: Of every beat, `[beats]`.
        cpu_share: Time on a processor, as a share of the window.
        wait_share: Time waiting for a processor, as a share of the window; None if the system does not count it.
        waited_share: Share of the lateness in which the thread waited for a processor; None if the system does not
            count it, or no beat was late.
    """

    lateness_s: NDArray[np.float64]
    cpu_share: float | None = None
    wait_share: float | None = None
    waited_share: float | None = None


NO_TIMING = LoopTiming(np.zeros(0))


class RunQueueClock:
    """Nanoseconds for which the creating thread was ready to run and waited for a processor (Linux)."""

    def __init__(self, path: str = "/proc/thread-self/schedstat") -> None:
        """Raises OSError if the system does not count this."""
        self._file = os.open(path, os.O_RDONLY)
        if not self._fields()[0]:  # a kernel without scheduling statistics shows zeros
            self.close()
            raise OSError("no scheduling statistics")

    def __call__(self) -> int:
        return self._fields()[1]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _fields(self) -> tuple[int, int]:
        ran, waited = os.pread(self._file, 64, 0).split()[:2]
        return int(ran), int(waited)


@contextmanager
def waiting_clock() -> Iterator[Callable[[], int] | None]:
    """Yield the calling thread's `RunQueueClock`, None if there is none."""
    try:
        clock = RunQueueClock()
    except OSError:
        yield None
        return
    with closing(clock):
        yield clock


class Heartbeat:
    """Beats from `begin` to `end`; both are called on the thread of the loop."""

    def __init__(
        self,
        timer: PreciseTimer,
        clock: Callable[[], int],
        cpu_clock: Callable[[], int],
        wait_clock: Callable[[], int] | None,
    ) -> None:
        """clock, cpu_clock, wait_clock: nanoseconds of time, of this thread on a processor, and waiting for one."""
        self._timer = timer
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._wait_clock = wait_clock
        self._lateness_ns = array("q")
        self._due_ns = 0
        self._first: tuple[int, int, int] | None = None  # time, processor time, waiting time
        self._last = (0, 0, 0)
        self._late = self._waited = 0.0
        self._ended = False

    def begin(self, at_ns: int) -> None:
        """Beat from this time on."""
        self._due_ns = at_ns
        self._timer.call_at(at_ns, self._beat)

    def end(self) -> None:
        """Record the overdue beats and stop; a second call changes nothing."""
        if not self._ended and self._first is not None:
            self._take()
        self._ended = True

    def timing(self) -> LoopTiming:
        """Return the lateness and the shares of the time from `begin` to `end`."""
        if self._first is None or self._last[0] <= self._first[0]:
            return NO_TIMING
        passed, ran, waited = (last - first for last, first in zip(self._last, self._first, strict=True))
        return LoopTiming(
            lateness_s=np.frombuffer(self._lateness_ns, dtype=np.int64) / 1e9,
            cpu_share=ran / passed,
            wait_share=None if self._wait_clock is None else waited / passed,
            waited_share=None if self._wait_clock is None or not self._late else self._waited / self._late,
        )

    def _beat(self) -> None:
        """Record the beat that woke the loop; others that are due now wait until earlier bytes are read."""
        if not self._ended:
            self._take(1)
            more = self._due_ns <= self._last[0]
            self._timer.call_at(self._due_ns, self._catch_up if more else self._beat)

    def _catch_up(self) -> None:
        if not self._ended:
            self._take()
            self._timer.call_at(self._due_ns, self._beat)

    def _take(self, most: int | None = None) -> None:
        """Record the lateness of the due beats, at most `most` of them, and its reason."""
        now_ns = self._clock()
        moment = (now_ns, self._cpu_clock(), 0 if self._wait_clock is None else self._wait_clock())
        if self._first is None:
            self._first = self._last = moment
        ran, waited = moment[1] - self._last[1], moment[2] - self._last[2]
        self._last = moment
        if self._due_ns <= now_ns and ran + waited > 0:
            self._late += now_ns - self._due_ns
            self._waited += (now_ns - self._due_ns) * waited / (ran + waited)
        overdue = len(range(self._due_ns, now_ns + 1, INTERVAL_NS)[:most])
        self._lateness_ns.extend([now_ns - self._due_ns] * overdue)
        self._due_ns += INTERVAL_NS * overdue
