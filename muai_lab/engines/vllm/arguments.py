"""From the settings to vLLM's arguments, with the keys that have no effect on this device."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from muai_lab.engines.base import Sampling
from muai_lab.engines.vllm.probe import NAME
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OptimizationSettings

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_MIB = 1 << 20
_COLDEST = 1e-5  # a lower temperature means greedy; vLLM would raise it to 0.01
_MOST_TOP_K = 2**31 - 1  # beyond any vocabulary; vLLM sends it as 64 bits, but keeps 32
_SEEDS = 1 << 63  # vLLM's are signed 64-bit integers, and -1 means none
_ADVICE = (
    (
        "larger than the available KV cache memory",
        "raise optimization.cache.max_memory_mb (GPU: or vllm.gpu_memory_utilization) or lower vllm.max_model_len",
    ),
    ("less than requested memory for kv", "lower optimization.cache.max_memory_mb"),
    ("less than desired GPU memory utilization", "lower optimization.vllm.gpu_memory_utilization"),
    ("out of memory", "lower optimization.vllm.gpu_memory_utilization or optimization.batcher.max_batch_size"),
)
"""Part of a message from vLLM, and the remedy in our settings."""


@dataclass(frozen=True, slots=True)
class EngineArguments:
    """The arguments of a vLLM engine.

    keywords: of `vllm.AsyncEngineArgs`. eos_token_ids: tokens that end an output. vocab_size: rows of the model's
    embedding. effective: the values in effect, for the record. warnings: keys without the effect that they have
    elsewhere.
    """

    keywords: dict[str, Any]
    eos_token_ids: tuple[int, ...]
    vocab_size: int | None
    effective: dict[str, str | int | float | bool | None]
    warnings: tuple[str, ...]


def engine_arguments(
    source: ModelSource, optimization: OptimizationSettings, *, slots: int, cpu: bool
) -> EngineArguments:
    """Map the settings. slots: most requests at once. Raises EngineError if model or device do not allow them."""
    if source.path is None:
        raise EngineError(NAME, f"{source.name} has no files on this machine")
    settings, cache = optimization.vllm, optimization.cache
    config = _read_json(source.path / "config.json")
    text = config.get("text_config", config)
    eager = cpu if settings.enforce_eager is None else settings.enforce_eager
    prefix_caching = cache.enabled and cache.max_memory_mb > 0
    kv_bytes = _kv_bytes(optimization, cpu=cpu)
    offloading = 0 if cpu else settings.swap_space
    keywords = {
        "model": str(source.path),
        # Prompts and outputs are token ids: our stack has the tokenizer, and vLLM needs none.
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # sampling defaults of the checkpoint would change what a request asks for
        "dtype": _dtype(settings.dtype, text.get("dtype") or text.get("torch_dtype"), cpu=cpu),
        "max_model_len": _max_model_len(settings.max_model_len, text.get("max_position_embeddings")),
        "tensor_parallel_size": settings.tensor_parallel_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "kv_cache_memory_bytes": kv_bytes,
        "kv_offloading_size": offloading or None,
        "enable_prefix_caching": prefix_caching,
        "max_num_seqs": slots,
        # One token for each running sequence, and the rest for prompts, which vLLM cuts if they do not fit.
        "max_num_batched_tokens": slots + optimization.batcher.max_prefill_tokens,
        "enforce_eager": eager,
        "use_tqdm_on_load": False,
    }
    effective: dict[str, str | int | float | bool | None] = {
        "max_num_seqs": slots,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enforce_eager": eager,
        "prefix_caching": prefix_caching,
        "eviction_policy": "lru" if prefix_caching else None,
        "kv_cache_mb": None if kv_bytes is None else kv_bytes // _MIB,
        "kv_offloading_gib": offloading,
        "gpu_memory_utilization": settings.gpu_memory_utilization if not cpu and kv_bytes is None else None,
    }
    eos = _eos_token_ids(source.path, text)
    vocabulary = text.get("vocab_size")
    return EngineArguments(keywords, eos, vocabulary, effective, tuple(_warnings(optimization, cpu=cpu)))


def sampling_keywords(sampling: Sampling) -> dict[str, Any]:
    """Return the keywords of vLLM's `SamplingParams`; every number fits into the messages of its processes."""
    return {
        "temperature": sampling.temperature if sampling.temperature >= _COLDEST else 0.0,
        "top_p": sampling.top_p,
        "top_k": min(sampling.top_k, _MOST_TOP_K),
        "seed": None if sampling.seed is None else sampling.seed % _SEEDS,
    }


def advice(message: str) -> str:
    """Return vLLM's message, with our keys beside the names of its arguments."""
    for sign, keys in _ADVICE:
        if sign in message:
            return f"{message} Here: {keys}."
    return message


def _dtype(wanted: str, checkpoint: str | None, *, cpu: bool) -> str:
    """Return vLLM's name of the dtype.

    `auto` on a GPU is vLLM's: the dtype of the checkpoint, but 16 bits for fp32. On a CPU 16 bits are rarely faster and
    change the output, so fp32 stays fp32 there. fp16, which a CPU only emulates, becomes bf16.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    if not cpu:
        return "auto"
    return "bfloat16" if checkpoint in ("float16", "bfloat16") else "float32"


def _max_model_len(wanted: int | None, own: int | None) -> int | None:
    if wanted is not None and own is not None and wanted > own:
        raise EngineError(
            NAME, f"optimization.vllm.max_model_len is {wanted}, but the model has only {own} positions: lower it"
        )
    return wanted


def _kv_bytes(optimization: OptimizationSettings, *, cpu: bool) -> int | None:
    """Return the memory of the key/value blocks; None to derive it from gpu_memory_utilization.

    In vLLM running sequences and cached prefixes share these blocks, so 0 cannot mean none: it turns the prefix cache
    off, and the size is the default.
    """
    cache = optimization.cache
    budget = cache.max_memory_mb
    if budget == 0:
        budget = type(cache).model_fields["max_memory_mb"].default
    elif "max_memory_mb" in cache.model_fields_set:
        return budget * _MIB
    return budget * _MIB if cpu else None


def _warnings(optimization: OptimizationSettings, *, cpu: bool) -> list[str]:
    warnings = []
    if optimization.cache.enabled and optimization.cache.eviction_policy == "fifo":
        warnings.append(
            "optimization.cache.eviction_policy=fifo is not offered by vLLM: it evicts the least recently used blocks"
        )
    if cpu:
        warnings += [
            f"optimization.vllm.{key} has no effect on a CPU: optimization.cache.max_memory_mb sizes the blocks"
            for key in ("swap_space", "gpu_memory_utilization")
            if key in optimization.vllm.model_fields_set
        ]
    return warnings


def _eos_token_ids(directory: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """Return the ids in generation_config.json, else in config.json: without a tokenizer vLLM knows none."""
    path = directory / "generation_config.json"
    ids = _read_json(path).get("eos_token_id") if path.is_file() else None
    if ids is None:
        ids = config.get("eos_token_id")
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (int(ids),)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(NAME, f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise EngineError(NAME, f"cannot read {path}: a JSON object is expected")
    return content
