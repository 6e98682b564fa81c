"""The checks of a request before it is queued."""

from __future__ import annotations

from collections.abc import Sequence

from muai_lab.engines.base import Engine, PromptCompute, Sampling, StepEngine
from muai_lab.engines.ranges import MAX_TOKENS, PRIORITY, TEMPERATURE, TIMEOUT_S, TOP_P, TokenRange
from muai_lab.errors import InvalidRequest
from muai_lab.stack.request import GenerationRequest

_MOST_DIGITS = 40  # of a number in an error message


def check_request(request: GenerationRequest, engine: Engine, *, vocabulary: int) -> None:
    """Raise InvalidRequest, with the name of the parameter, for a request that this engine can never serve."""
    _check_prompt(request.prompt, vocabulary)
    _check_sampling(request.sampling)
    if request.timeout_s is not None:
        _check_range("timeout_s", request.timeout_s, TIMEOUT_S)
    _check_range("priority", request.priority, PRIORITY)
    _check_range("max_tokens", request.max_tokens, MAX_TOKENS)
    _check_salt(request.cache_salt)
    if request.begun:
        _check_begun(request.begun, engine, vocabulary)
    _check_length(len(request.prompt), len(request.begun) + request.max_tokens, engine)


def _check_range(name: str, value: float, numbers: TokenRange) -> None:
    if not numbers.holds(value):
        raise InvalidRequest(f"{name} must be {numbers}, not {_shown(value)}", param=name)


def _shown(value: float) -> str:
    """Return the number as text, shortened: Python converts no integer of more than a few thousand digits."""
    if isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
        return f"an integer of more than {_MOST_DIGITS} digits"
    return str(value)


def _check_salt(salt: str) -> None:
    try:
        salt.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"cache_salt is no valid Unicode: {error.reason}", param="cache_salt") from error


def _check_prompt(prompt: Sequence[int], vocabulary: int) -> None:
    if not prompt:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if min(prompt) < 0 or max(prompt) >= vocabulary:
        raise InvalidRequest(f"prompt token ids must lie in 0..{vocabulary - 1}", param="prompt")


def _check_begun(begun: Sequence[int], engine: Engine, vocabulary: int) -> None:
    if not isinstance(engine, StepEngine) or engine.prompts is PromptCompute.PIECES:
        raise InvalidRequest(
            "only an encoder-decoder model takes an output that has begun: put its tokens at the end of the prompt",
            param="x_muai_output",
        )
    if min(begun) < 0 or max(begun) >= vocabulary:
        raise InvalidRequest(f"token ids must lie in 0..{vocabulary - 1}", param="x_muai_output")


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
    _check_range("temperature", sampling.temperature, TEMPERATURE)
    _check_range("top_p", sampling.top_p, TOP_P)
    if sampling.top_k < 0:
        raise InvalidRequest(f"top_k must be 0 (all tokens) or more, not {_shown(sampling.top_k)}", param="top_k")
