"""The requests of a simulated load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muai_lab.stack.request import GenerationRequest

_PREFIX = 1 << 16  # tokens; every prefix is shorter
_OWN = 1 << 31  # token ids from here on begin the part of a prompt that is one request's alone; four bytes hold them


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One request of a load.

    number: names it, and makes the rest of its prompt its own. at_s: when it arrives. prompt_tokens: all of its prompt.
    output_tokens: how many it produces. prefix: number of the prefix that it shares with others, if any, which is the
    first prefix_tokens of its prompt.
    """

    number: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix: int | None = None
    prefix_tokens: int = 0

    def prompt(self) -> Sequence[int]:
        """Token ids: those of the shared prefix, then others, at no place the same as another request's."""
        own = _OWN + self.number
        if self.prefix is None:
            return range(own, own + self.prompt_tokens)
        begin = self.prefix * _PREFIX
        shared = min(self.prefix_tokens, self.prompt_tokens)
        return [*range(begin, begin + shared), *range(own, own + self.prompt_tokens - shared)]

    def generation(self) -> GenerationRequest:
        """What the scheduler is asked."""
        return GenerationRequest(str(self.number), self.prompt(), self.output_tokens, ignore_eos=True)
