"""What the stack refuses before it queues a request, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence

from muai_lab.engines.base import Engine, Sampling
from muai_lab.errors import InvalidRequest
from muai_lab.stack.request import GenerationRequest


def check_request(request: GenerationRequest, engine: Engine, *, vocabulary: int) -> None:
    """Raise InvalidRequest, naming the parameter, for a request that this engine can never serve."""
    _check_prompt(request.prompt, vocabulary)
    _check_sampling(request.sampling)
    if request.timeout_s is not None and not request.timeout_s > 0:
        raise InvalidRequest(f"timeout_s must be more than 0, not {request.timeout_s}", param="timeout_s")
    if request.max_tokens < 1:
        raise InvalidRequest(f"max_tokens must be at least 1, not {request.max_tokens}", param="max_tokens")
    _check_length(len(request.prompt), request.max_tokens, engine)


def _check_prompt(prompt: Sequence[int], vocabulary: int) -> None:
    if not prompt:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if min(prompt) < 0 or max(prompt) >= vocabulary:
        raise InvalidRequest(f"prompt token ids must lie in 0..{vocabulary - 1}", param="prompt")


def _check_length(prompt_tokens: int, max_tokens: int, engine: Engine) -> None:
    limit = engine.info.max_model_len
    if prompt_tokens > engine.prompt_limit():
        raise InvalidRequest(
            f"the prompt has {prompt_tokens} tokens, and the model's context is {limit} tokens",
            param="prompt",
            code="context_length_exceeded",
        )
    if max_tokens > engine.output_limit(prompt_tokens):
        raise InvalidRequest(
            f"the model's context is {limit} tokens, but {prompt_tokens} in the prompt and {max_tokens} of output"
            " were asked for: shorten the prompt or lower max_tokens",
            param="max_tokens",
            code="context_length_exceeded",
        )


def _check_sampling(sampling: Sampling) -> None:
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise InvalidRequest(f"temperature must be 0 or more, not {sampling.temperature}", param="temperature")
    if not 0 < sampling.top_p <= 1:
        raise InvalidRequest(f"top_p must be above 0 and at most 1, not {sampling.top_p}", param="top_p")
    if sampling.top_k < 0:
        raise InvalidRequest(f"top_k must be 0 (all tokens) or more, not {sampling.top_k}", param="top_k")
