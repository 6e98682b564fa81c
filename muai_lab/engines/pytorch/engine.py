"""The PyTorch step engine: a Hugging Face checkpoint, loaded and stepped over slots by PyTorch alone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from muai_lab.engines.base import EngineInfo
from muai_lab.engines.prefixes import prefix_refusal
from muai_lab.engines.pytorch.device import (
    DTYPES,
    NAME,
    choose_device,
    choose_dtype,
    device_name,
    memory_warning,
    unused_gpu,
)
from muai_lab.engines.pytorch.linear import pack_linears
from muai_lab.engines.pytorch.loading import eos_token_ids, load_model, max_model_len
from muai_lab.engines.pytorch.slot_engine import SlotEngine, over_slots

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OptimizationSettings

log = logging.getLogger(__name__)


class PyTorchEngine(SlotEngine):
    """Serves a Hugging Face checkpoint with PyTorch, on a CPU or a CUDA device."""

    def __init__(self, source: ModelSource, optimization: OptimizationSettings, *, slots: int) -> None:
        """Load the model. Raises EngineError if device, dtype, architecture or weights do not allow it."""
        import transformers

        settings = optimization.pytorch
        device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        unused = unused_gpu(settings.device, device)
        if unused is not None:
            log.warning("pytorch: %s serves on the CPU; %s", source.name, unused)
        model = load_model(source, dtype, device)
        packed = pack_linears(model) if device.type == "cpu" else 0
        max_len = max_model_len(model.config, settings.max_model_len)
        encoder_decoder = source.encoder_decoder
        over = over_slots(model, encoder_decoder=encoder_decoder, slots=slots, max_len=max_len, engine=NAME)
        if device.type == "cuda":
            _warn_of_memory(over.most_kv_bytes, optimization, device)
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
                "cuda": torch.version.cuda if device.type == "cuda" else None,
                "unused_gpu": unused,
                "most_kv_bytes": over.most_kv_bytes,
            },
        )
        super().__init__(
            over,
            info,
            slots=slots,
            eos_token_ids=eos_token_ids(model),
            vocab_size=model.get_input_embeddings().num_embeddings,
            encoder_decoder=encoder_decoder,
            prefix_refusal=prefix_refusal(source),
        )


def _warn_of_memory(kv_bytes: int, optimization: OptimizationSettings, device: torch.device) -> None:
    cache = optimization.cache
    warning = memory_warning(
        kv_bytes, cache.max_memory_mb * 2**20 if cache.enabled else 0, torch.cuda.mem_get_info(device)[0]
    )
    if warning is not None:
        log.warning("pytorch: %s", warning)
