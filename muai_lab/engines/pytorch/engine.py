"""The PyTorch step engine: the contract's prefill and decode over a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from muai_lab.engines.base import EngineInfo, PrefillChunk, StepEngine
from muai_lab.engines.pytorch.decoder import DecoderModel
from muai_lab.engines.pytorch.encoder_decoder import EncoderDecoderModel
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
from muai_lab.engines.sampling import SlotSampler
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import PytorchSettings


class PyTorchEngine(StepEngine):
    """Serves a Hugging Face checkpoint with PyTorch, on a CPU or a CUDA device."""

    def __init__(self, source: ModelSource, settings: PytorchSettings, *, slots: int) -> None:
        """Load the model. Raises EngineError when device, dtype, architecture or weights do not allow it."""
        import transformers

        device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        model = load_model(source, dtype, device)
        packed = pack_linears(model) if device.type == "cpu" and dtype is torch.float32 else 0
        max_len = max_model_len(model.config, settings.max_model_len)
        self.slots = slots
        self.eos_token_ids = eos_token_ids(model)
        self.vocab_size = model.get_input_embeddings().num_embeddings
        self._encoder_decoder = source.encoder_decoder
        kind = EncoderDecoderModel if source.encoder_decoder else DecoderModel
        try:
            self._model: DecoderModel | EncoderDecoderModel | None = kind(model, slots=slots, max_len=max_len)
        except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
            # What a foreign architecture makes of our calls cannot be told beforehand.
            kind_name = type(model).__name__
            raise EngineError(NAME, f"{kind_name} cannot be served by steps over slots: {error}") from error
        self._sampler = SlotSampler()
        self._last: dict[int, int] = {}
        self.info = EngineInfo(
            name=NAME,
            version=torch.__version__,
            device=_device_name(device),
            dtype=next(name for name, value in DTYPES.items() if value is dtype),
            max_model_len=max_len,
            details={
                "transformers": transformers.__version__,
                "threads": torch.get_num_threads(),
                "packed_linears": packed,
            },
        )

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[PrefillChunk]) -> list[int | None]:
        """See `StepEngine.prefill`."""
        if not chunks:
            return []
        logits = self._live().prefill(chunks)
        final = [chunk for chunk in chunks if chunk.final]
        for chunk in final:
            self._sampler.open(chunk.slot, chunk.sampling)
        slots = [chunk.slot for chunk in final]
        chosen = iter(self._choose(logits, slots) if final else [])
        return [next(chosen) if chunk.final else None for chunk in chunks]

    @torch.inference_mode()
    def decode(self, slots: Sequence[int]) -> list[int]:
        """See `StepEngine.decode`."""
        if not slots:
            return []
        logits = self._live().decode(slots, [self._last[slot] for slot in slots])
        return self._choose(logits, slots)

    @torch.inference_mode()
    def release(self, slot: int) -> None:
        """See `StepEngine.release`."""
        self._live().release(slot)
        self._sampler.release(slot)
        self._last.pop(slot, None)

    def close(self) -> None:
        """Drop the model and its memory."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def prompt_limit(self) -> int:
        """See `StepEngine.prompt_limit`; an encoder's prompt does not share positions with the output."""
        return self.info.max_model_len if self._encoder_decoder else super().prompt_limit()

    def output_limit(self, prompt_tokens: int) -> int:
        """See `StepEngine.output_limit`."""
        return self.info.max_model_len if self._encoder_decoder else super().output_limit(prompt_tokens)

    def _live(self) -> DecoderModel | EncoderDecoderModel:
        if self._model is None:
            raise EngineError(NAME, "the engine is closed")
        return self._model

    def _choose(self, logits: torch.Tensor, slots: Sequence[int]) -> list[int]:
        tokens = self._sampler.choose(logits, slots)
        self._last.update(zip(slots, tokens, strict=True))
        return tokens


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
