"""A short time slice for the thread that stamps the answers.

Linux gives a waking thread its processor sooner the shorter a slice it asks for (EEVDF, since 6.12; older kernels take
the wish and ignore it). The thread gets no more of the processor than before, and takes nothing from a server beside
it: it only runs in smaller pieces. Any user may ask. Elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SLICE_NS = 100_000  # the shortest that the kernel gives
_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}  # sched_setattr, sched_getattr


class _Attributes(ctypes.Structure):
    """`struct sched_attr` of sched_setattr(2)."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


@contextmanager
def short_slice() -> Iterator[None]:
    """Ask for the shortest slice for the calling thread, within."""
    before = _asked()
    if before is None or before.policy != os.SCHED_OTHER:
        yield
        return
    wanted = _Attributes.from_buffer_copy(before)
    wanted.runtime = _SLICE_NS
    _ask(wanted)
    try:
        yield
    finally:
        _ask(before)


def _asked() -> _Attributes | None:
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return None
    found = _Attributes()
    size = ctypes.sizeof(found)
    failed = ctypes.CDLL(None).syscall(_CALLS[platform.machine()][1], 0, ctypes.byref(found), size, 0)
    return None if failed else found


def _ask(attributes: _Attributes) -> None:
    # A refusal leaves everything as it was: the beat of the loop will say how late it is.
    ctypes.CDLL(None).syscall(_CALLS[platform.machine()][0], 0, ctypes.byref(attributes), 0)
