"""A real step engine without a model, for tests of what stands above it: strict about its contract, and steppable."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from muai_lab.engines.base import EngineInfo, PrefillChunk, StepEngine

DEADLINE_S = 200.0  # of a test that would else hang


class CountingEngine(StepEngine):
    """A sequence counts on from its last prompt token: 5, 6, 7, ... modulo the vocabulary.

    Breaking the contract (a slot used twice, decoded without a prompt, out of range) raises, as a real engine might do
    worse. With `stepwise`, each call of prefill or decode first announces itself in `entered`, then waits for `allow`.
    """

    vocab_size = 100

    def __init__(self, slots: int = 4, *, context: int = 64, stepwise: bool = False, end: int | None = None) -> None:
        self.info = EngineInfo("counting", "1", "cpu", "fp32", context)
        self.slots = slots
        self.eos_token_ids = frozenset() if end is None else frozenset({end})
        self.fail_next: Exception | None = None
        self.fail_release: Exception | None = None
        self.closed = 0
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.threads: set[int] = set()
        self.entered = threading.Semaphore(0)
        self.allow = threading.Semaphore(0)
        self._stepwise = stepwise
        self._last: dict[int, int] = {}
        self._computed: dict[int, int] = {}  # prompt tokens of each slot

    @property
    def occupied(self) -> set[int]:
        """Slots that hold a sequence."""
        return set(self._computed)

    def prefill(self, chunks: Sequence[PrefillChunk]) -> list[int | None]:
        self._begin("prefill", tuple(chunk.slot for chunk in chunks))
        for chunk in chunks:
            if not 0 <= chunk.slot < self.slots or self._computed.get(chunk.slot, 0) != chunk.start:
                raise AssertionError(f"slot {chunk.slot} is not free, or its prompt has a gap")
            self._computed[chunk.slot] = chunk.start + len(chunk.tokens)
            if chunk.final:
                self._last[chunk.slot] = chunk.tokens[-1]
        return [self._next(chunk.slot) if chunk.final else None for chunk in chunks]

    def decode(self, slots: Sequence[int]) -> list[int]:
        self._begin("decode", tuple(slots))
        return [self._next(slot) for slot in slots]

    def release(self, slot: int) -> None:
        self.threads.add(threading.get_ident())
        if self.fail_release is not None:
            raise self.fail_release
        self._computed.pop(slot, None)
        self._last.pop(slot, None)

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed += 1

    def wait_until_entered(self) -> None:
        """Return once a call of prefill or decode has begun."""
        assert self.entered.acquire(timeout=DEADLINE_S), "the engine was not called"

    def _begin(self, name: str, slots: tuple[int, ...]) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append((name, slots))
        if self._stepwise:
            self.entered.release()
            if not self.allow.acquire(timeout=DEADLINE_S):
                raise AssertionError("the test never allowed this step")
        if self.fail_next is not None:
            raise self.fail_next

    def _next(self, slot: int) -> int:
        self._last[slot] = (self._last[slot] + 1) % self.vocab_size
        return self._last[slot]
