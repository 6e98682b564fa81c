"""The PyTorch step engine: a Hugging Face checkpoint, loaded and stepped over slots by PyTorch alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from muai_lab.engines.base import EngineInfo
from muai_lab.engines.prefixes import prefix_refusal
from muai_lab.engines.pytorch.linear import pack_linears
from muai_lab.engines.pytorch.loading import (
    DTYPES,
    NAME,
    choose_device,
    choose_dtype,
    eos_token_ids,
    load_model,
    max_model_len,
)
from muai_lab.engines.pytorch.slot_engine import SlotEngine, over_slots

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OptimizationSettings


class PyTorchEngine(SlotEngine):
    """Serves a Hugging Face checkpoint with PyTorch, on a CPU or a CUDA device."""

    def __init__(self, source: ModelSource, optimization: OptimizationSettings, *, slots: int) -> None:
        """Load the model. Raises EngineError when device, dtype, architecture or weights do not allow it."""
        import transformers

        settings = optimization.pytorch
        device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        model = load_model(source, dtype, device)
        packed = pack_linears(model) if device.type == "cpu" else 0
        max_len = max_model_len(model.config, settings.max_model_len)
        encoder_decoder = source.encoder_decoder
        info = EngineInfo(
            name=NAME,
            version=torch.__version__,
            device=device_name(device),
            dtype=next(name for name, value in DTYPES.items() if value is dtype),
            max_model_len=max_len,
            details={
                "transformers": transformers.__version__,
                "threads": torch.get_num_threads(),
                "packed_linears": packed,
            },
        )
        super().__init__(
            over_slots(model, encoder_decoder=encoder_decoder, slots=slots, max_len=max_len, engine=NAME),
            info,
            slots=slots,
            eos_token_ids=eos_token_ids(model),
            vocab_size=model.get_input_embeddings().num_embeddings,
            encoder_decoder=encoder_decoder,
            prefix_refusal=prefix_refusal(source),
        )


def device_name(device: torch.device) -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
