"""One request on its way through a scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field

from muai_lab.engines.base import PrefillChunk
from muai_lab.stack.events import Finished
from muai_lab.stack.request import GenerationRequest


@dataclass(slots=True, eq=False)
class SequenceState:
    """One request on its way.

    computed: prompt tokens that its slot holds, computed or copied. output: tokens so far; the slot does not hold the
    last one yet. last_token_at: 0 before the first.
    """

    request: GenerationRequest
    queued_at: float
    deadline: float | None
    slot: int | None = None
    computed: int = 0
    admitted_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    output: list[int] = field(default_factory=list)

    @property
    def priority(self) -> int:
        """Lower goes first."""
        return self.request.priority

    def chunk(self, budget: int) -> PrefillChunk:
        """The next piece of the prompt, of at most `budget` tokens."""
        assert self.slot is not None
        request, start = self.request, self.computed
        if len(request.prompt) - start <= budget:
            tokens = request.prompt[start:] if start else request.prompt
            return PrefillChunk(self.slot, tokens, start, sampling=request.sampling)
        tokens = request.prompt[start : start + budget]
        return PrefillChunk(self.slot, tokens, start, final=False, sampling=request.sampling)

    def finished(self, reason: str, now: float) -> Finished:
        """The event of its end."""
        return Finished(
            self.request.request_id,
            now,
            reason,
            len(self.request.prompt),
            len(self.output),
            self.queued_at,
            self.admitted_at,
            self.first_token_at,
        )
