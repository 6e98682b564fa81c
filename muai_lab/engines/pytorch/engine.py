"""The PyTorch step engine: loading, devices and dtypes, and the contract's prefill and decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from muai_lab.engines.base import EngineInfo, PrefillChunk, StepEngine
from muai_lab.engines.pytorch.decoder import ATTENTION_NAME, DecoderModel, slot_attention
from muai_lab.engines.pytorch.encoder_decoder import EncoderDecoderModel
from muai_lab.engines.sampling import SlotSampler
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import PytorchSettings

NAME = "pytorch"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def choose_device(wanted: str) -> torch.device:
    """`auto` takes CUDA where there is one. Raises EngineError for a device that this machine lacks."""
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda" if wanted in ("auto", "cuda") else wanted)
    if wanted == "auto":
        return torch.device("cpu")
    raise EngineError(NAME, f"device {wanted!r} asked for, but PyTorch sees no CUDA device: set device to auto or cpu")


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto`: fp32 on a CPU; bf16 on a GPU that has it, else fp16. Raises EngineError where the device cannot run it."""
    if wanted == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    dtype = DTYPES[wanted]
    if dtype is torch.float16 and device.type == "cpu":
        raise EngineError(NAME, "fp16 does not run on a CPU: set optimization.pytorch.dtype to auto, bf16 or fp32")
    if (
        dtype is torch.bfloat16
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise EngineError(NAME, "this GPU has no bf16: set optimization.pytorch.dtype to auto, fp16 or fp32")
    return dtype


class PyTorchEngine(StepEngine):
    """Serves a Hugging Face checkpoint with PyTorch, on a CPU or a CUDA device."""

    def __init__(self, source: ModelSource, settings: PytorchSettings, *, slots: int) -> None:
        """Load the model. Raises EngineError when device, dtype, architecture or weights do not allow it."""
        import transformers

        device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        model = _load(source, dtype, device)
        max_len = _max_model_len(model.config, settings.max_model_len)
        self.slots = slots
        self.eos_token_ids = _eos_token_ids(model)
        self._encoder_decoder = source.encoder_decoder
        kind = EncoderDecoderModel if source.encoder_decoder else DecoderModel
        self._model: DecoderModel | EncoderDecoderModel | None = kind(model, slots=slots, max_len=max_len)
        self._sampler = SlotSampler()
        self._last: dict[int, int] = {}
        self.info = EngineInfo(
            name=NAME,
            version=torch.__version__,
            device=_device_name(device),
            dtype=next(name for name, value in DTYPES.items() if value is dtype),
            max_model_len=max_len,
            details={"transformers": transformers.__version__, "threads": torch.get_num_threads()},
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


def _load(source: ModelSource, dtype: torch.dtype, device: torch.device) -> Any:
    import transformers

    transformers.AttentionInterface.register(ATTENTION_NAME, slot_attention)
    try:
        if source.encoder_decoder:
            kind, attention = transformers.AutoModelForSeq2SeqLM, "sdpa"
        else:
            kind, attention = transformers.AutoModelForCausalLM, ATTENTION_NAME
        model, report = kind.from_pretrained(
            source.path, dtype=dtype, attn_implementation=attention, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        # Transformers raises any of these for missing, truncated or foreign files.
        raise EngineError(NAME, f"cannot load {source.name} from {source.path}: {error}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        shown = ", ".join(missing[:3])
        raise EngineError(NAME, f"the weights of {source.name} lack {len(missing)} tensors ({shown}, …)")
    if source.encoder_decoder and model.config.model_type not in ("t5", "mt5"):
        raise EngineError(NAME, f"encoder-decoder architecture {model.config.model_type!r} is not supported (T5 is)")
    return model.to(device).eval()


def _max_model_len(config: Any, wanted: int | None) -> int:
    text = config.get_text_config(decoder=True)
    own = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 512
    if wanted is not None and wanted > own:
        raise EngineError(NAME, f"max_model_len {wanted} is more than the model's {own} positions")
    return int(wanted or own)


def _eos_token_ids(model: Any) -> frozenset[int]:
    ids = model.generation_config.eos_token_id
    if ids is None:
        ids = model.config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(ids) if isinstance(ids, list) else frozenset((ids,))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
