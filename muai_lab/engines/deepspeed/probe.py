"""The check if DeepSpeed can serve here; imports neither DeepSpeed nor, if torch is built for CPUs, torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from muai_lab.engines.architectures import encoder_decoder_refusal
from muai_lab.engines.availability import Availability, installed_version
from muai_lab.errors import ModelError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OptimizationSettings

NAME = "deepspeed"

KEYS: Mapping[str, str] = {
    "optimization.deepspeed.tensor_parallel": "tensor_parallel.tp_size of init_inference: as many processes, each with "
    "its share of every layer",
    "optimization.deepspeed.pipeline_parallel": "nothing: DeepSpeed inference has no pipeline parallelism, above 1 is "
    "refused",
    "optimization.deepspeed.dtype": "dtype of init_inference",
    "optimization.deepspeed.replace_with_kernel_inject": "replace_with_kernel_inject of init_inference, where model, "
    "device and batching allow it",
    "optimization.batcher.max_batch_size": "slots",
}

# Those that DeepSpeed's AutoTP.supported() lists as not supported.
_NOT_SHARDED = ("deberta", "flaubert", "fsmt", "gpt2", "led", "longformer", "xlm", "xlnet")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "num_attention_heads", "num_heads", "n_head")


def availability(optimization: OptimizationSettings) -> Availability:
    """See `muai_lab.engines.catalogue.EngineKind`."""
    version = installed_version("deepspeed")
    if version is None or find_spec("deepspeed") is None:
        return Availability("DeepSpeed is not installed: pip install 'muai-lab[deepspeed]'")
    device, devices, dtypes = _device()
    return Availability(_refusal(optimization, device, devices, dtypes), version, device, dtypes)


def supports(optimization: OptimizationSettings, source: ModelSource) -> str | None:
    """See `muai_lab.engines.catalogue.EngineKind`. With several ranks, AutoTP must be able to shard the model."""
    kind, ranks = source.model_type, optimization.deepspeed.tensor_parallel
    refusal = encoder_decoder_refusal(kind) if source.encoder_decoder else None
    if refusal is not None or ranks == 1:
        return refusal
    mend = "set optimization.deepspeed.tensor_parallel=1"
    if kind in _NOT_SHARDED:
        return f"DeepSpeed cannot shard models of type {kind!r}: {mend}"
    heads = _key_value_heads(source)
    if heads is not None and heads % ranks:
        return (
            f"tensor_parallel is {ranks}, but the model's {heads} key/value heads cannot be shared out evenly: {mend}"
        )
    return None


def uses_cpu() -> bool:
    """True if models run on the CPU: there is no GPU, or DeepSpeed's variable DS_ACCELERATOR is `cpu`."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or (installed_version("torch") or "").endswith("+cpu"):
        return True
    import torch

    return not torch.cuda.is_available()


def _refusal(
    optimization: OptimizationSettings, device: str | None, devices: int, dtypes: tuple[str, ...]
) -> str | None:
    settings = optimization.deepspeed
    if settings.pipeline_parallel > 1:
        return (
            f"pipeline_parallel is {settings.pipeline_parallel}, but DeepSpeed inference has no pipeline parallelism:"
            " set optimization.deepspeed.pipeline_parallel=1 (tensor_parallel spreads a model)"
        )
    if settings.dtype not in ("auto", *dtypes):
        where = "a CPU" if device == "cpu" else f"this GPU ({device})"
        others = " or ".join(f"optimization.deepspeed.dtype={dtype}" for dtype in dtypes)
        default = " (the default)" if settings.dtype == type(settings).model_fields["dtype"].default else ""
        return f"dtype {settings.dtype}{default} does not run on {where}: set {others}"
    if settings.tensor_parallel > devices:
        kind = "CPU core" if device == "cpu" else "GPU"
        there = f"{devices} {kind}{'s' if devices != 1 else ''}"
        return (
            f"tensor_parallel is {settings.tensor_parallel}, but there {'is' if devices == 1 else 'are'} {there} here:"
            f" set optimization.deepspeed.tensor_parallel to {devices} or less"
        )
    return None


def _device() -> tuple[str, int, tuple[str, ...]]:
    """Return the device's name, their number (a rank on a CPU takes at least one core), and dtypes, best first."""
    if uses_cpu():
        return "cpu", len(os.sched_getaffinity(0)), ("fp32", "bf16")
    import torch

    bf16: tuple[str, ...] = ("bf16",) if torch.cuda.is_bf16_supported(including_emulation=False) else ()
    return torch.cuda.get_device_name(0), torch.cuda.device_count(), ("fp16", *bf16, "fp32")


def _key_value_heads(source: ModelSource) -> int | None:
    """Return the number in the model's config.json; None if it is not there, or the file cannot be read."""
    try:
        config = source.config()
    except ModelError:  # the load reports it
        return None
    text = config.get("text_config", config)
    found = (text.get(key) for key in _KEY_VALUE_HEADS)
    return next((heads for heads in found if isinstance(heads, int)), None)
