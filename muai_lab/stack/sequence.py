"""The state of one request in a batcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from muai_lab.engines.base import PrefillChunk
from muai_lab.stack.events import Finished
from muai_lab.stack.request import GenerationRequest


@dataclass(slots=True, eq=False)
class SequenceState:
    """The state of one request.

    prompt: tokens that its slot must hold before the next one is sampled; after a failed step they include the output
    so far. computed: tokens of it that the slot holds, computed or copied. output: tokens so far; the slot does not
    hold the last one yet. last_token_at: 0 before the first. reruns: times that it lost its slot to a failed step.
    kept: output tokens that it had when that last happened. unexplained: failed steps without a culprit that it was in.
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
    prompt: Sequence[int] = field(init=False)
    reruns: int = 0
    kept: int = 0
    unexplained: int = 0

    def __post_init__(self) -> None:
        self.prompt = self.request.prompt

    @property
    def priority(self) -> int:
        """Lower goes first."""
        return self.request.priority

    def chunk(self, budget: int) -> PrefillChunk:
        """Return the next piece of the prompt, of at most `budget` tokens."""
        assert self.slot is not None
        prompt, start, sampling = self.prompt, self.computed, self.request.sampling
        if len(prompt) - start <= budget:
            tokens = prompt[start:] if start else prompt
            output = [*self.request.begun, *self.output[: self.kept]]
            return PrefillChunk(self.slot, tokens, start, sampling=sampling, output=output)
        return PrefillChunk(self.slot, prompt[start : start + budget], start, final=False, sampling=sampling)

    def begin_again(self, *, in_prompt: bool) -> None:
        """Start over in another slot. in_prompt: the engine computes the output so far as the end of the prompt."""
        self.reruns += 1
        self.computed = 0
        self.kept = len(self.output)
        if in_prompt:
            self.prompt = [*self.request.prompt, *self.output]

    def finished(self, reason: str, now: float) -> Finished:
        """Return the event of its end."""
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
