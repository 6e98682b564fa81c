"""The requests of a simulated load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muai_lab.stack.request import GenerationRequest

_PREFIX = 1 << 16  # tokens; every prefix is shorter
_OWN = 1 << 31  # ids from here on begin the unique part of a prompt; they fit into four bytes


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One request of a load.

    number: its name, which also makes the rest of its prompt unique. at_s: when it arrives. prompt_tokens: length of
    the whole prompt. output_tokens: length of the output. prefix: number of the prefix that it shares with others, if
    any: the first prefix_tokens of its prompt.
    """

    number: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix: int | None = None
    prefix_tokens: int = 0

    def prompt(self) -> Sequence[int]:
        """Return token ids: those of the shared prefix, then ids that differ from every other request's."""
        own = _OWN + self.number
        if self.prefix is None:
            return range(own, own + self.prompt_tokens)
        begin = self.prefix * _PREFIX
        shared = min(self.prefix_tokens, self.prompt_tokens)
        return [*range(begin, begin + shared), *range(own, own + self.prompt_tokens - shared)]

    def generation(self) -> GenerationRequest:
        """Return the request for the scheduler."""
        return GenerationRequest(str(self.number), self.prompt(), self.output_tokens, ignore_eos=True)
