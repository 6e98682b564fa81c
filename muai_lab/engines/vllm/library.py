"""What we use of vLLM, in one place: the engine object, its steps, requests and reports. Importing it takes seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import PrometheusStatLogger

from muai_lab.engines.base import Sampling, StreamedTokens
from muai_lab.engines.vllm.arguments import sampling_keywords

__all__ = [
    "EngineDeadError",
    "EngineGenerateError",
    "StepClock",
    "VLLMClientError",
    "open_llm",
    "prompt_input",
    "release",
    "report",
    "sampling_params",
]

_WATCH = "muai_lab.engines.vllm.server_watch.ServerWatch"


class StepClock(PrometheusStatLogger):
    """Notes when the engine last made a step.

    It stands where vLLM would put its Prometheus logger, which fills the process-wide registry with metrics of vLLM's
    own at every step. That there is a logger at all makes vLLM stamp the tokens of each request.
    """

    def __init__(self, vllm_config: Any = None, engine_indexes: list[int] | None = None) -> None:
        # Without super's, which registers the metrics.
        self.last_step_at = time.monotonic()

    def record(self, *_args: Any, **_keywords: Any) -> None:
        """Called after every step that the engine reports."""
        self.last_step_at = time.monotonic()

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def record_admission_rejection(self, reason: str) -> None:
        """Nothing to count: our batcher in front admits no more than vLLM takes."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """The engine is never put to sleep."""


def open_llm(keywords: dict[str, Any]) -> tuple[Any, StepClock]:
    """Start the engine's processes and load the model; blocks. keywords: of AsyncEngineArgs. Raises as vLLM does."""
    config = AsyncEngineArgs(**keywords, worker_extension_cls=_WATCH).create_engine_config()
    llm = AsyncLLM.from_vllm_config(config, stat_loggers=[StepClock], disable_log_stats=True)
    loggers = llm.logger_manager.stat_loggers if llm.logger_manager is not None else []
    return llm, next(logger for logger in loggers if isinstance(logger, StepClock))


def release(llm: Any) -> None:
    """Give back sockets and their threads after `llm.shutdown`; left to garbage collection, they wait for the last
    reference, which the traceback of any error may hold. Called on the loop that served."""
    llm.engine_core.resources.ctx.destroy(linger=0)


def prompt_input(prompt: Sequence[int], cache_salt: str) -> Any:
    """Token ids as a rendered input, which vLLM takes without its tokenizer."""
    return tokens_input(list(prompt), cache_salt=cache_salt or None)


def sampling_params(sampling: Sampling, *, max_tokens: int, stop_token_ids: Sequence[int]) -> Any:
    """One request's parameters. stop_token_ids: end the output (and belong to it); empty to ignore the end of text."""
    return SamplingParams(
        **sampling_keywords(sampling),
        max_tokens=max_tokens,
        stop_token_ids=list(stop_token_ids),
        # Said by stop_token_ids; what vLLM itself would take for the end of text depends on a tokenizer it has not got.
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,  # it is this request's alone
    )


def report(output: Any, *, caching: bool) -> StreamedTokens:
    """What one of vLLM's outputs says. caching: prefixes are cached, so their count means something."""
    completion = output.outputs[0]
    metrics = output.metrics
    return StreamedTokens(
        completion.token_ids,
        at=metrics.last_token_ts if metrics is not None and metrics.last_token_ts else None,
        finish_reason=completion.finish_reason,
        cached_tokens=output.num_cached_tokens if caching else None,
    )
