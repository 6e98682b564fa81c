"""Mooncake traces (github.com/kvcache-ai/Mooncake; Qin et al., FAST 2025), with the prefixes that requests share.

A request's `hash_ids` name the blocks of its prompt, 512 tokens each, the last one shorter. An id stands for a block's
content together with everything before it, so two prompts that begin with the same ids began with the same tokens. Here
every id becomes a made-up text of the block's length, always the same one, and prompts are made of their blocks' texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from muai_lab.settings.workload import MooncakeWorkload
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.reading import Reading, number, shown, tokens
from muai_lab.workload.source import Source
from muai_lab.workload.trace import Row, field_of, read_trace, scaled, trace_source

_TEXTS_KEPT = 65_536


def mooncake_source(workload: MooncakeWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """The requests of the trace. Raises RunError for a file that is none and for the first line that is bad."""
    reading = Reading.of(workload)
    trace = read_trace(reading, workload, _rows(reading, workload.block_tokens))
    # A block ends with a line end, which keeps it apart from the next one for the tokenizer; so it has two tokens at
    # least, one of them the line end.
    block_tokens = max(2, scaled(workload.block_tokens, workload.length_scale))

    @lru_cache(maxsize=_TEXTS_KEPT)
    def block(identifier: int) -> str:
        return maker.text(block_tokens - 1, streams.stream(f"block {identifier}")) + "\n"

    def prompt_of(row: int, length: int, words: np.random.Generator) -> tuple[str, int]:
        del words  # a block's text depends on its id alone
        ids = trace.blocks[row]
        room = length - maker.template_tokens
        whole = min(len(ids) - 1, (room - 1) // block_tokens) if ids else 0
        head_tokens = length
        while whole > 0 and head_tokens >= length:  # once, unless the tokenizer takes more tokens for a block
            head = "".join(block(identifier) for identifier in ids[:whole])
            head_tokens = maker.count(head)
            whole -= head_tokens >= length
        tail = streams.stream(f"tail {ids[whole]}" if ids else f"row {row}")
        return maker.prompt(length, tail, head=head if whole > 0 else "", head_tokens=head_tokens)

    return trace_source(workload, reading, trace, streams, maker, prompt_of)


def _rows(reading: Reading, block_tokens: int) -> Iterator[Row]:
    for place, line in reading.lines():
        if not line.strip():
            continue
        try:
            yield _row(line, block_tokens)
        except ValueError as error:
            reading.bad(place, str(error))


def _row(line: str, block_tokens: int) -> Row:
    try:
        entry: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, found {shown(entry)}")
    prompt = tokens(field_of(entry, "input_length"), "input_length")
    ids = entry.get("hash_ids", [])
    if not isinstance(ids, list) or not all(type(item) is int for item in ids):
        raise ValueError(f"hash_ids is {shown(ids)}, expected a list of whole numbers")
    if len(ids) * block_tokens < prompt and ids:
        raise ValueError(
            f"{len(ids)} hash_ids of {block_tokens} tokens cannot make an input_length of {prompt}; see "
            "workload.block_tokens"
        )
    return (
        number(field_of(entry, "timestamp"), "timestamp") / 1e3,
        prompt,
        tokens(field_of(entry, "output_length"), "output_length"),
        ids[: -(-prompt // block_tokens)],
    )
