"""Requests to the stack, and the pieces of their output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muai_lab.engines.base import GREEDY, Sampling
from muai_lab.stack.text import NO_STOP_STRINGS, StopStrings


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to complete.

    prompt: token ids. max_tokens: most output tokens (>= 1). stop: strings that end the output (not included in it).
    ignore_eos: continue past the end-of-sequence token, until max_tokens. timeout_s: seconds from submission to the
    deadline, None for none. stream: deliver output as it is produced; else it is delivered whole at the end, and until
    then another engine may start over. priority: lower goes first; waiting makes up for it. cache_salt: separates the
    prefix caches of tenants. keep_ids: keep the ids of the output (`Generation.token_ids`). begun: tokens that the
    output has already; they are computed, but not returned. Only an encoder-decoder model takes them; for other models
    they are the end of the prompt.
    """

    request_id: str
    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = GREEDY
    stop: StopStrings = NO_STOP_STRINGS
    ignore_eos: bool = False
    timeout_s: float | None = None
    stream: bool = True
    priority: int = 0
    cache_salt: str = ""
    keep_ids: bool = False
    begun: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of output.

    text: new text (may be empty while the tokens do not form whole characters). tokens: tokens produced since the last
    delta. output_tokens: tokens produced so far. finish_reason: `stop` or `length` on the last delta, else None.
    cached_tokens: prompt tokens served from the prefix cache (None without a cache).
    """

    text: str
    tokens: int
    output_tokens: int
    finish_reason: str | None = None
    cached_tokens: int | None = None
