"""The number of tokens that each chunk of a streamed answer carries, inferred from the server's counts.

One invariant decides: the counts of the chunks must sum to the count of the whole answer, else the counts per chunk are
unknown, all of them. Servers fill `usage.completion_tokens` in four ways: with the count so far (vLLM's
`continuous_usage_stats`), with the count of each chunk alone, only at the end, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import le, sub

from muai_lab.load.foreign_values import COUNT_LIMIT
from muai_lab.load.stated_usage import NO_CLAIM

# A token rarely needs more than a few events of its own. A total this many times smaller than the number of chunks is
# a placeholder (0 or 1), not a count.
_CHUNKS_PER_TOKEN_LIMIT = 8

PER_CHUNK = "usage counts the tokens of each chunk alone; the sum is the count of the answer"
END_TOKEN = "one token per answer came without a chunk: taken as the end-of-sequence token"
HIDDEN_REASONING = "hidden reasoning tokens are counted with the first chunk"
CONTRADICTION = "the server's token counts contradict the chunks of the answer and are not used"


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The tokens of one answer.

    Attributes:
        total: None if unknown.
        per_chunk: Tokens of each chunk, None if unknown.
        unseen: Tokens that no chunk carried and only a later count revealed; `total` includes them.
        note: The inference as text, None if the server was explicit.
    """

    total: int | None
    per_chunk: list[int] | None
    unseen: int = 0
    note: str | None = None


UNKNOWN = TokenCounts(None, None)


def infer_counts(
    claims: Sequence[int],
    final: int | None,
    *,
    ended_by_stop: bool = False,
    reasoning: int = 0,
    limit: int = COUNT_LIMIT,
) -> TokenCounts:
    """Infer the token counts of one answer.

    Args:
        claims: `completion_tokens` that came with each chunk, `NO_CLAIM` if none.
        final: `completion_tokens` that came after the last chunk, None if none did.
        ended_by_stop: True if the answer ended by itself, not by its length limit.
        reasoning: `reasoning_tokens` of the final usage; 0 if not given.
        limit: requested tokens; counts of single chunks whose sum exceeds it are not counts.
    """
    chunks = len(claims)
    if not chunks:
        return TokenCounts(final, None, unseen=final) if final else UNKNOWN
    if claims[-1] == chunks and final in (None, chunks) and claims == list(range(1, chunks + 1)):
        return TokenCounts(chunks, [1] * chunks)  # of most answers of most servers: one token in each chunk, counted
    if NO_CLAIM not in claims:
        found = _each_alone(claims, final, limit) or _so_far(claims, final, limit)
        if found is not None:
            return found
        total = final
    else:
        total = final if final is not None else (claims[-1] if claims[-1] != NO_CLAIM else None)
        if total is None:
            return UNKNOWN
    if total is None or total < max(claims) or _is_placeholder(total, chunks):
        return TokenCounts(None, None, note=CONTRADICTION)
    return _one_each(chunks, total, ended_by_stop, reasoning)


def _is_placeholder(total: int, chunks: int) -> bool:
    return total * _CHUNKS_PER_TOKEN_LIMIT < chunks or (total == 1 and chunks > 1)


def _each_alone(claims: Sequence[int], final: int | None, limit: int) -> TokenCounts | None:
    """Return the counts if each claim is that of its chunk alone."""
    if len(claims) < 2 or min(claims) < 1 or sum(claims) > COUNT_LIMIT:
        return None
    if final is None:
        possible = sum(claims) <= limit and not _grows(claims)
        return TokenCounts(sum(claims), list(claims), note=PER_CHUNK) if possible else None
    return TokenCounts(final, list(claims), note=PER_CHUNK) if sum(claims) == final else None


def _so_far(claims: Sequence[int], final: int | None, limit: int) -> TokenCounts | None:
    """Return the counts if each claim is that of the answer so far."""
    if final is None and len(set(claims)) < len(claims) and min(claims) > 0 and sum(claims) <= limit:
        return None  # counts of chunks that happen not to fall, such as 1, 3, 4, 4, look the same
    total = claims[-1] if final is None else final
    if total < 1 or total < claims[-1] or not _grows(claims):
        return None
    return TokenCounts(total, [claims[0], *map(sub, claims[1:], claims)], unseen=total - claims[-1])


def _grows(claims: Sequence[int]) -> bool:
    """True if the claims never fall and most chunks add to them."""
    if len(claims) == 1:
        return claims[0] > 0
    if claims[0] < 0 or not all(map(le, claims, claims[1:])):
        return False
    return len(set(claims) - {0}) * 2 > len(claims)


def _one_each(chunks: int, total: int, ended_by_stop: bool, reasoning: int) -> TokenCounts:
    """Return the counts if each chunk carries one token and that explains the total; else only the total is known."""
    hidden: list[tuple[int, str | None]] = [(0, None)]
    if 0 < reasoning < total:
        hidden.append((reasoning, HIDDEN_REASONING))
    for before, note in hidden:
        unseen = total - before - chunks
        if unseen == 0 or (unseen == 1 and ended_by_stop):
            return TokenCounts(total, [1 + before, *[1] * (chunks - 1)], unseen, END_TOKEN if unseen else note)
    return TokenCounts(total, None)
