"""Recovery after a step that raised: the engine releases every slot, and proves that it still computes."""

from __future__ import annotations

from muai_lab.engines.base import PrefillChunk, StepEngine

_PROMPT = (0, 1)  # token ids that every vocabulary has


def recover(engine: StepEngine) -> None:
    """Release all slots, then compute a short sequence. Raises any error of the engine, which cannot be used any more.

    A fault of one request leaves the engine usable. A lost process or a broken device does not.
    """
    for slot in range(engine.slots):
        engine.release(slot)
    tokens = [*engine.prefill([PrefillChunk(0, _PROMPT)]), *engine.decode([0])]
    engine.release(0)
    if len(tokens) != 2 or not all(isinstance(token, int) for token in tokens):
        raise RuntimeError(f"a step of one sequence returned {tokens!r} instead of a token")
