"""Everything that we use of vLLM: the engine object, its steps, requests and reports. The import takes seconds."""

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
    """Records when the engine last made a step.

    It replaces vLLM's Prometheus logger, which fills the process-wide registry with vLLM's own metrics at every step.
    vLLM records the times of tokens only if there is a logger.
    """

    def __init__(self, vllm_config: Any = None, engine_indexes: list[int] | None = None) -> None:
        # The constructor of the base class is not called: it registers the metrics.
        self.last_step_at = time.monotonic()

    def record(self, *_args: Any, **_keywords: Any) -> None:
        """Called after every step that the engine reports."""
        self.last_step_at = time.monotonic()

    def log_engine_initialized(self) -> None:
        """Log nothing."""

    def record_admission_rejection(self, reason: str) -> None:
        """Count nothing: our batcher admits no more than vLLM accepts."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Record nothing: the engine never sleeps."""


def open_llm(keywords: dict[str, Any]) -> tuple[Any, StepClock]:
    """Start the engine's processes and load the model; blocks. keywords: of AsyncEngineArgs. Raises as vLLM does."""
    config = AsyncEngineArgs(**keywords, worker_extension_cls=_WATCH).create_engine_config()
    llm = AsyncLLM.from_vllm_config(config, stat_loggers=[StepClock], disable_log_stats=True)
    loggers = llm.logger_manager.stat_loggers if llm.logger_manager is not None else []
    return llm, next(logger for logger in loggers if isinstance(logger, StepClock))


def release(llm: Any) -> None:
    """Free sockets and their threads after `llm.shutdown`, on the loop that served.

    Garbage collection would free them only with the last reference, which the traceback of any error may hold.
    """
    llm.engine_core.resources.ctx.destroy(linger=0)


def prompt_input(prompt: Sequence[int], cache_salt: str) -> Any:
    """Return token ids as a rendered input, which vLLM accepts without a tokenizer."""
    return tokens_input(list(prompt), cache_salt=cache_salt or None)


def sampling_params(sampling: Sampling, *, max_tokens: int, stop_token_ids: Sequence[int]) -> Any:
    """Return one request's parameters. stop_token_ids: end the output and belong to it; empty to ignore the end."""
    return SamplingParams(
        **sampling_keywords(sampling),
        max_tokens=max_tokens,
        stop_token_ids=list(stop_token_ids),
        # Set by stop_token_ids: vLLM's own end of text depends on the tokenizer, which it does not have.
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,  # no other request uses it
    )


def report(output: Any, *, caching: bool) -> StreamedTokens:
    """Convert one of vLLM's outputs. caching: prefixes are cached, so their count is valid."""
    completion = output.outputs[0]
    metrics = output.metrics
    return StreamedTokens(
        completion.token_ids,
        at=metrics.last_token_ts if metrics is not None and metrics.last_token_ts else None,
        finish_reason=completion.finish_reason,
        cached_tokens=output.num_cached_tokens if caching else None,
    )
