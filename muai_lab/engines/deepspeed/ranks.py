"""The ranks that share a model: the first is this process, the others are its children."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from muai_lab.engines.base import KVBlock, PrefillChunk
from muai_lab.engines.deepspeed.library import abort_group
from muai_lab.engines.deepspeed.probe import NAME
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.engines.deepspeed.prepare import RankJob
    from muai_lab.engines.pytorch.slot_engine import PrefixModel, SlotModel

T = TypeVar("T")

_FAREWELL_S = 5.0  # for a worker to end by itself
_POST_MORTEM_S = 5.0  # for a rank to die after the others have noticed


@dataclass(slots=True)
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    reported: list[str] = field(default_factory=list)


class Ranks:
    """Starts the other ranks, sends each step to them, detects when one dies, and ends them."""

    def __init__(self, job: RankJob, *, threads: int) -> None:
        """Start the `job.ranks - 1` processes. threads: CPU threads of each."""
        self._closing = False
        self._died = threading.Event()
        self._workers: list[_Worker] = []
        self._watches: list[threading.Thread] = []
        try:
            for rank in range(1, job.ranks):
                worker = _start(rank, job, threads)
                self._workers.append(worker)
                watch = threading.Thread(target=self._watch, args=(worker,), name=f"deepspeed-rank-{rank}", daemon=True)
                self._watches.append(watch)
                watch.start()
                self._send(worker, job)
        except OSError as error:
            self.close()
            raise EngineError(NAME, f"a process for rank {len(self._workers)} cannot be started: {error}") from error

    @property
    def process_ids(self) -> list[int]:
        """Ids of the child processes."""
        return [worker.process.pid for worker in self._workers]

    @property
    def died(self) -> bool:
        """True once a rank has ended by itself."""
        return self._died.is_set()

    def wait_for(self, state: str) -> list[Any]:
        """Wait until all ranks report `state`; returns what each sent with it. Raises EngineError if one fails."""
        values = []
        for worker in self._workers:
            try:
                reported, value = worker.connection.recv()
            except (EOFError, OSError) as error:
                raise self.failure() from error
            if reported != state:
                worker.reported.append(value)
                raise self.failure()
            values.append(value)
        return values

    def send(self, message: object) -> None:
        """Send a message to all ranks. Raises EngineError if a rank is gone."""
        if self.died:
            raise self.failure()
        for worker in self._workers:
            self._send(worker, message)

    def failure(self, cause: Exception | None = None) -> EngineError:
        """Return the end of the rank that died; wait for it to die if needed.

        cause: the error of our own rank, which is the reason if no other rank has died.
        """
        deadline = time.monotonic() + _POST_MORTEM_S
        while not self._died.wait(0.02) and time.monotonic() < deadline:
            pass
        for worker in self._workers:
            _listen(worker)
        if not self.died and cause is not None:
            return EngineError(NAME, f"rank 0 failed: {type(cause).__name__}: {cause}")
        # A killed rank reports nothing, and others then report only that they lost it: so it comes first.
        order = sorted(self._workers, key=lambda worker: ((worker.process.poll() or 0) >= 0, not worker.reported))
        worker = order[0]
        return EngineError(NAME, f"rank {worker.rank} (process {worker.process.pid}) {_end_of(worker)}")

    def close(self) -> None:
        """Ask all ranks to end, and kill those that do not. A second call does nothing."""
        self._closing = True
        for worker in self._workers:
            with suppress(OSError):  # the worker may be gone already
                worker.connection.send(None)
            worker.connection.close()
        deadline = time.monotonic() + _FAREWELL_S
        for worker in self._workers:
            try:
                worker.process.wait(0.0 if self.died else max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        for watch in self._watches:
            watch.join()
        self._workers.clear()
        self._watches.clear()

    def _send(self, worker: _Worker, message: object) -> None:
        try:
            worker.connection.send(message)
        except OSError as error:
            raise self.failure() from error

    def _watch(self, worker: _Worker) -> None:
        worker.process.wait()
        if not self._closing:
            self._died.set()
            abort_group()


class SharedModel:
    """Our rank's shard of a model over slots, stepped together with those of the others."""

    def __init__(self, own: SlotModel, ranks: Ranks, device: torch.device) -> None:
        self.prompts = own.prompts
        self._own = own
        self._ranks = ranks
        self._device = device

    def prefill(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """See `SlotModel.prefill`."""
        return self._together("prefill", self._own.prefill, list(chunks))

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """See `SlotModel.decode`."""
        return self._together("decode", self._own.decode, list(slots), list(tokens))

    def release(self, slot: int) -> None:
        """See `SlotModel.release`."""
        if not self._ranks.died:
            self._ranks.send(("release", (slot,)))
        self._own.release(slot)

    def _together(self, name: str, step: Callable[..., T], *arguments: object) -> T:
        self._ranks.send((name, arguments))
        try:
            result = step(*arguments)
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()  # an aborted operation ends here, not later
        except RuntimeError as error:
            raise self._ranks.failure(error) from error
        if self._ranks.died:
            raise self._ranks.failure()
        return result


class SharedDecoder(SharedModel):
    """The same for a model whose prefixes can be copied: every rank keeps its share of each block."""

    def __init__(self, own: PrefixModel, ranks: Ranks, device: torch.device, *, others_position_bytes: int) -> None:
        """others_position_bytes: bytes of one position in a copy, on the other ranks together."""
        super().__init__(own, ranks, device)
        self._own_prefixes = own
        self._others_position_bytes = others_position_bytes
        self._names = itertools.count()
        self._forgotten: list[int] = []

    @property
    def position_bytes(self) -> int:
        """See `PrefixModel.position_bytes`; on all ranks together."""
        return self._own_prefixes.position_bytes + self._others_position_bytes

    def copy_out(self, slot: int, begin: int, end: int, block: int) -> list[SharedBlock]:
        """See `PrefixEngine.copy_out`."""
        self._forget()
        names = [next(self._names) for _ in range(begin, end, block)]
        self._ranks.send(("copy_out", (names, slot, begin, end, block)))
        own = self._own_prefixes.copy_out(slot, begin, end, block)
        return [self._shared(name, share, block) for name, share in zip(names, own, strict=True)]

    def copy_in(self, slot: int, blocks: Sequence[SharedBlock]) -> None:
        """See `PrefixEngine.copy_in`."""
        self._ranks.send(("copy_in", (slot, [block.name for block in blocks])))
        self._own_prefixes.copy_in(slot, [block.own for block in blocks])

    def release(self, slot: int) -> None:
        """See `SlotModel.release`."""
        if not self._ranks.died:
            self._forget()
        super().release(slot)

    def _shared(self, name: int, own: KVBlock, positions: int) -> SharedBlock:
        block = SharedBlock(name, own, own.nbytes + positions * self._others_position_bytes)
        weakref.finalize(block, self._forgotten.append, name).atexit = False
        return block

    def _forget(self) -> None:
        """Have the other ranks drop their shares of blocks that have no reference left."""
        names = [self._forgotten.pop() for _ in range(len(self._forgotten))]
        if names:
            self._ranks.send(("forget", (names,)))


@dataclass(frozen=True, slots=True, weakref_slot=True)
class SharedBlock:
    """A block of which every rank holds a share, under the same name. own: our rank's share. nbytes: of all shares."""

    name: int
    own: KVBlock
    nbytes: int


def _start(rank: int, job: RankJob, threads: int) -> _Worker:
    ours, theirs = Pipe()
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": str(threads),
    }
    command = [sys.executable, "-P", "-m", "muai_lab.engines.deepspeed.worker", str(theirs.fileno()), str(rank)]
    try:
        process = subprocess.Popen(
            command,
            env=variables,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return _Worker(rank, process, ours)


def _listen(worker: _Worker) -> None:
    with suppress(EOFError, OSError):  # nothing more to read
        while worker.connection.poll():
            reported, text = worker.connection.recv()
            if reported == "failed":
                worker.reported.append(text)


def _end_of(worker: _Worker) -> str:
    if worker.reported:
        return f"failed: {worker.reported[0]}"
    status = worker.process.poll()
    if status is None:
        return "does not answer"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
