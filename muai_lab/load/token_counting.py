"""Token counts by a local tokenizer, for servers that count no tokens, or not those of each chunk.

Text that is tokenised again can give other tokens than the model's, so these counts are an estimate. They are kept in
`client_output_tokens`, and never replace the server's own count.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from muai_lab.request_record import RequestRecord

COUNTED_HERE = "tokens counted by the client's tokenizer"


class OffsetTokenizer(Protocol):
    """A tokenizer that returns the position of each token in a text."""

    def token_ends(self, texts: list[str]) -> list[list[int]]:
        """Return, for each text, the end of each of its tokens in characters."""


def count_tokens(records: Sequence[RequestRecord], tokenizer: OffsetTokenizer) -> None:
    """Fill in the missing token counts of the successful records that kept their texts."""
    open_ones = [record for record in records if awaits_count(record)]
    ends = tokenizer.token_ends(["".join(record.texts or ()) for record in open_ones])
    for record, found in zip(open_ones, ends, strict=True):
        per_chunk = _tokens_per_chunk(record.texts or [], found)
        if record.output_tokens is None:
            record.client_output_tokens = len(found)
            record.note = COUNTED_HERE
        if len(found) == record.total_tokens:  # otherwise the text has other tokens than the model's
            record.fill_chunks(per_chunk)
    for record in records:
        record.texts = None


def awaits_count(record: RequestRecord) -> bool:
    """True if `count_tokens` will fill in the tokens of this record."""
    open_ended = record.status == "ok" and not record.tokens_known
    return open_ended and record.texts is not None and len(record.texts) == len(record.chunk_t_ns)


def _tokens_per_chunk(texts: list[str], token_ends: list[int]) -> list[int]:
    """Return the number of tokens of each chunk; a token belongs to the chunk with its last character."""
    chunk_ends = list(accumulate(map(len, texts)))
    counts = [0] * len(texts)
    for end in token_ends:
        counts[min(bisect_right(chunk_ends, end - 1), len(texts) - 1)] += 1
    return counts
