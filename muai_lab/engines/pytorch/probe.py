"""The check if PyTorch can serve here; imports torch only if CUDA is configured or may be present."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from muai_lab.engines.architectures import encoder_decoder_refusal
from muai_lab.engines.availability import Availability, installed_version

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OptimizationSettings

KEYS: Mapping[str, str] = {
    "optimization.pytorch.device": "device that the model is moved to",
    "optimization.pytorch.dtype": "dtype of from_pretrained",
    "optimization.pytorch.threads": "torch.set_num_threads",
    "optimization.pytorch.max_model_len": "positions of a slot",
    "optimization.batcher.max_batch_size": "slots",
}


def availability(optimization: OptimizationSettings) -> Availability:
    """See `muai_lab.engines.catalogue.EngineKind`."""
    version = installed_version("torch")
    if version is None:
        return Availability("PyTorch is not installed: pip install torch")
    from muai_lab.engines.pytorch.device import choose_device, choose_dtype, device_name, has_bf16
    from muai_lab.errors import EngineError

    settings = optimization.pytorch
    try:
        device = choose_device(settings.device)
        choose_dtype(settings.dtype, device)
    except EngineError as error:
        return Availability(error.reason, version)
    if device.type == "cpu":
        return Availability(None, version, "cpu", ("fp32", "bf16"))
    dtypes = ("fp32", "fp16", "bf16") if has_bf16() else ("fp32", "fp16")
    return Availability(None, version, device_name(device), dtypes)


def supports(optimization: OptimizationSettings, source: ModelSource) -> str | None:
    """See `muai_lab.engines.catalogue.EngineKind`. Any decoder may do: the load proves that it runs."""
    return encoder_decoder_refusal(source.model_type) if source.encoder_decoder else None
