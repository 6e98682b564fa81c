"""The dialects of the OpenAI API, and their order in the search for the richest one that a server accepts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

UsageSupport = Literal["continuous", "final", "none"]
LimitField = Literal["max_tokens", "max_completion_tokens"]

_STREAM_OPTIONS: dict[UsageSupport, dict[str, bool] | None] = {
    "continuous": {"include_usage": True, "continuous_usage_stats": True},
    "final": {"include_usage": True},
    "none": None,
}
# A plainer dialect may help against every refusal of a request's content. These have another reason: the key, the
# address, the load.
NOT_ABOUT_FIELDS = frozenset({401, 402, 403, 404, 405, 407, 429})


@dataclass(frozen=True, slots=True)
class Dialect:
    """The extensions of the OpenAI API that a request uses.

    Attributes:
        usage: Token counts with every chunk, at the end, or never.
        ignore_eos: The answer continues to its limit.
        limit: Name of the field that limits the length of the answer.
        salted: The request carries `cache_salt`.
    """

    usage: UsageSupport = "continuous"
    ignore_eos: bool = True
    limit: LimitField = "max_tokens"
    salted: bool = False

    def fields(self, cache_salt: str | None) -> dict[str, Any]:
        """Return the fields of a request's body that belong to the dialect, except the length limit."""
        fields: dict[str, Any] = {}
        if (stream_options := _STREAM_OPTIONS[self.usage]) is not None:
            fields["stream_options"] = stream_options
        if self.ignore_eos:
            fields["ignore_eos"] = True
        if self.salted:
            fields["cache_salt"] = cache_salt
        return fields

    def notes(self, wanted: Dialect) -> Iterator[str]:
        """Yield the differences from the wanted dialect, with their consequences for the results."""
        if self.usage == "final":
            yield "the server does not report usage per chunk: tokens per chunk are known only if each has one"
        if self.usage == "none":
            yield (
                "the server refuses stream_options: it reports no usage, so tokens are counted only with a tokenizer "
                "(target.tokenizer)"
            )
        if wanted.ignore_eos and not self.ignore_eos:
            yield "the server does not know ignore_eos: outputs may be shorter than the schedule asks for"
        if self.limit != "max_tokens":
            yield f"the server takes the length limit as {self.limit}"


def dialects(wanted: Dialect) -> list[Dialect]:
    """Return the dialects to try, from the one wanted to the plainest; those with fewer losses come first."""
    usages: tuple[UsageSupport, ...] = ("continuous", "final", "none")
    limits: tuple[LimitField, ...] = ("max_tokens", "max_completion_tokens")
    eos = (True, False) if wanted.ignore_eos else (False,)
    salted = (True, False) if wanted.salted else (False,)
    found = [
        (usages.index(usage) + limits.index(limit) + eos.index(ignore) + salted.index(salt), number, candidate)
        for number, (usage, limit, ignore, salt) in enumerate(product(usages, limits, eos, salted))
        for candidate in [Dialect(usage, ignore, limit, salt)]
    ]
    return [dialect for _, _, dialect in sorted(found, key=lambda entry: entry[:2])]
