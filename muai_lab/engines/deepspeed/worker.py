"""A rank other than the first: a process that repeats every step of the first rank on its shard of every layer.

It is started as `python -m muai_lab.engines.deepspeed.worker FD RANK`; FD is its end of the control connection. It ends
when the first rank requests it or is gone. It ignores signals to the whole group, because the first rank then drains.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from muai_lab.engines.base import KVBlock
from muai_lab.engines.deepspeed.library import process_group
from muai_lab.engines.deepspeed.prepare import RankJob, load, prepare, probe_logits
from muai_lab.engines.pytorch.slot_engine import PrefixModel
from muai_lab.errors import EngineError
from muai_lab.garbage import collect_rarely

_PARENT_CHECK_S = 1.0


def main(argv: list[str]) -> int:
    """Run until the connection ends. Returns the exit status: 0, or 1 after a failure that was reported."""
    connection: Connection[Any, Any] = Connection(int(argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    collect_rarely()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        _run(connection, int(argv[2]))
    except (EOFError, ConnectionError):
        return 0  # the first rank is gone
    except EngineError as error:
        _report(connection, error.reason)
        return 1
    except Exception as error:  # noqa: BLE001 - the first rank must get any error
        _report(connection, f"{type(error).__name__}: {error}")
        return 1
    return 0


def _run(connection: Connection[Any, Any], rank: int) -> None:
    job: RankJob = connection.recv()
    model = load(job)
    connection.send(("loaded", None))
    connection.recv()  # all have loaded; the load may take long, the join may not
    with process_group(job.torch_device(rank), rank=rank, ranks=job.ranks, meeting_point=job.meeting_point):
        slots = prepare(job, model, rank).slots
        probe_logits(slots)
        shares = _Shares(slots) if isinstance(slots, PrefixModel) else None
        connection.send(("ready", slots.position_bytes if isinstance(slots, PrefixModel) else None))
        steps: dict[str, Callable[..., object]] = {
            "prefill": slots.prefill,
            "decode": slots.decode,
            "release": slots.release,
        }
        if shares is not None:
            steps |= {"copy_out": shares.copy_out, "copy_in": shares.copy_in, "forget": shares.forget}
        with torch.inference_mode():
            while (message := connection.recv()) is not None:
                name, arguments = message
                steps[name](*arguments)


class _Shares:
    """This rank's shares of the blocks in the first rank's cache."""

    def __init__(self, slots: PrefixModel) -> None:
        self._slots = slots
        self._blocks: dict[int, KVBlock] = {}

    def copy_out(self, names: Sequence[int], slot: int, begin: int, end: int, block: int) -> None:
        self._blocks.update(zip(names, self._slots.copy_out(slot, begin, end, block), strict=True))

    def copy_in(self, slot: int, names: Sequence[int]) -> None:
        self._slots.copy_in(slot, [self._blocks[name] for name in names])

    def forget(self, names: Sequence[int]) -> None:
        for name in names:
            del self._blocks[name]


def _report(connection: Connection[Any, Any], text: str) -> None:
    try:
        connection.send(("failed", text))
    except OSError:
        sys.stderr.write(f"DeepSpeed worker: {text}\n")


def _end_with(parent: int) -> None:
    """End with the parent, even while an operation waits for it that cannot be interrupted."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
