"""An engine of which some requests make the steps fail, for tests of what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from muai_lab.engines.base import PrefillChunk, PromptCompute
from tests.unit.counting_engine import CountingEngine


class HostileEngine(CountingEngine):
    """Counts like its base; steps that compute a culprit raise.

    culprits: last prompt token of each -> index of the output token from which on its steps raise. solo: they raise
    when they are computed alone too. dirty: a step that raises has done half of its work before.
    """

    def __init__(
        self,
        slots: int,
        culprits: Mapping[int, int],
        *,
        prompts: PromptCompute = PromptCompute.PIECES,
        solo: bool = True,
        dirty: bool = True,
    ) -> None:
        super().__init__(slots, context=1000)
        self.prompts = prompts
        self.raised = 0
        self._culprits = culprits
        self._solo = solo
        self._dirty = dirty
        self._trigger: dict[int, int] = {}  # by slot, of culprits
        self._index: dict[int, int] = {}  # of the output token that comes next, by slot

    def prefill(self, chunks: Sequence[PrefillChunk]) -> list[int | None]:
        for chunk in chunks:
            self._index[chunk.slot] = len(chunk.output)
            origin = chunk.tokens[-1] - (len(chunk.output) if self.prompts is PromptCompute.PIECES else 0)
            if chunk.final and origin % self.vocab_size in self._culprits:
                self._trigger[chunk.slot] = self._culprits[origin % self.vocab_size]
        self._explode([chunk.slot for chunk in chunks if chunk.final])
        if self.prompts is not PromptCompute.PIECES:
            chunks = [_continued(chunk) for chunk in chunks]
        tokens = super().prefill(chunks)
        self._count([chunk.slot for chunk in chunks if chunk.final])
        return tokens

    def decode(self, slots: Sequence[int]) -> list[int]:
        self._explode(slots)
        tokens = super().decode(slots)
        self._count(slots)
        return tokens

    def release(self, slot: int) -> None:
        super().release(slot)
        self._trigger.pop(slot, None)
        self._index.pop(slot, None)

    def _count(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._index[slot] += 1

    def _explode(self, slots: Sequence[int]) -> None:
        guilty = [slot for slot in slots if self._index[slot] >= self._trigger.get(slot, 10**9)]
        if not guilty or not (self._solo or len(slots) > 1):
            return
        self.raised += 1
        if self._dirty:
            for slot in slots:
                self._last[slot] = 77
        raise RuntimeError(f"slot {guilty[0]} is poison")


def _continued(chunk: PrefillChunk) -> PrefillChunk:
    """The chunk as the base counts on from it."""
    if not chunk.output:
        return chunk
    return PrefillChunk(chunk.slot, [*chunk.tokens[:-1], chunk.output[-1]], chunk.start, chunk.final, chunk.sampling)
