"""The ranges of the numbers in a request: values that every engine supports, so that all engines behave alike.

The HTTP edge and the stack refuse values outside. A `top_k` above the vocabulary is valid: it keeps every token.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenRange:
    """Numbers that a field of a request may hold, both ends included. above: `least` itself is excluded."""

    least: float
    most: float
    above: bool = False

    def holds(self, value: float) -> bool:
        """True if `value` lies in the range; NaN lies in none."""
        return (value > self.least if self.above else value >= self.least) and value <= self.most

    def __str__(self) -> str:
        return f"{'above' if self.above else 'at least'} {self.least} and at most {self.most}"


INT64_MAX = 2**63 - 1

TEMPERATURE = TokenRange(0, 2)  # OpenAI's range, and vLLM's
TOP_P = TokenRange(0, 1, above=True)
TOP_K_LEAST = -1  # means all tokens in vLLM, like 0
SEED = TokenRange(-INT64_MAX - 1, INT64_MAX)
MAX_TOKENS = TokenRange(1, 2**31 - 1)  # the model's context is shorter
CHOICES = TokenRange(1, 128)
PRIORITY = TokenRange(-1000, 1000)
TIMEOUT_S = TokenRange(0, 1e9, above=True)
