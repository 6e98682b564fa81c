"""Prompts of Mooncake traces (github.com/kvcache-ai/Mooncake; Qin et al., FAST 2025), with their shared prefixes.

A request's `hash_ids` name the blocks of its prompt, 512 tokens each, the last one shorter. An id stands for a block's
content together with everything before it, so two prompts that begin with the same ids began with the same tokens. Here
every id becomes a made-up text of the block's length, always the same one, and prompts are made of their blocks' texts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from muai_lab.settings.workload import MooncakeWorkload
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.trace import Trace

_TEXTS_KEPT = 65_536


def block_prompts(
    trace: Trace, workload: MooncakeWorkload, streams: RandomStreams, maker: PromptMaker
) -> Callable[[int, int, np.random.Generator], tuple[str, int]]:
    """Makes the prompt of the request at a place of the trace, of so many tokens: text and real count."""
    # A block ends with a line end, which keeps it apart from the next one for the tokenizer; so it has two tokens at
    # least, one of them the line end.
    block_tokens = max(2, round(workload.block_tokens * workload.length_scale))

    @lru_cache(maxsize=_TEXTS_KEPT)
    def block(identifier: int) -> str:
        return maker.text(block_tokens - 1, streams.stream(f"block {identifier}")) + "\n"

    def prompt_of(place: int, length: int, words: np.random.Generator) -> tuple[str, int]:
        del words  # a block's text depends on its id alone
        ids = trace.blocks.get(place, [])
        room = length - maker.template_tokens
        whole = min(len(ids) - 1, (room - 1) // block_tokens) if ids else 0
        head_tokens = length
        while whole > 0 and head_tokens >= length:  # once, unless the tokenizer takes more tokens for a block
            head = "".join(block(identifier) for identifier in ids[:whole])
            head_tokens = maker.count(head)
            whole -= head_tokens >= length
        tail = streams.stream(f"tail {ids[whole]}" if ids else f"row {place}")
        return maker.prompt(length, tail, head=head if whole > 0 else "", head_tokens=head_tokens)

    return prompt_of
