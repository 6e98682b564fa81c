"""A step engine over any model that runs over slots."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from muai_lab.engines.base import EngineInfo, KVBlock, PrefillChunk, PrefixEngine, PromptCompute, SlotFaults
from muai_lab.engines.pytorch.decoder import DecoderModel
from muai_lab.engines.pytorch.device import device_failures
from muai_lab.engines.pytorch.encoder_decoder import EncoderDecoderModel
from muai_lab.engines.sampling import SlotSampler
from muai_lab.errors import EngineError


class SlotModel(Protocol):
    """A model with memory for sequences in slots. prompts: the way in which it computes prompts."""

    prompts: PromptCompute

    def prefill(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """Compute the chunks' tokens. Returns the last logits of each final chunk `[final chunks, vocabulary]`."""

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append `tokens[i]` to `slots[i]`. Returns the logits that follow `[slots, vocabulary]`."""

    def release(self, slot: int) -> None:
        """Drop the slot's sequence."""


@runtime_checkable
class PrefixModel(SlotModel, Protocol):
    """A model whose prefixes can be copied between slots."""

    @property
    def position_bytes(self) -> int:
        """Bytes that one position takes in a copy."""

    def copy_out(self, slot: int, begin: int, end: int, block: int) -> Sequence[KVBlock]:
        """See `PrefixEngine.copy_out`."""

    def copy_in(self, slot: int, blocks: Sequence[Any]) -> None:
        """See `PrefixEngine.copy_in`; the blocks come from this model."""


def over_slots(
    model: Any, *, encoder_decoder: bool, slots: int, max_len: int, engine: str
) -> DecoderModel | EncoderDecoderModel:
    """Give a loaded Hugging Face model memory for `slots` sequences of `max_len` positions, and check that it runs.

    Raises EngineError, in the name of `engine`, for an architecture that cannot be served over slots.
    """
    kind = EncoderDecoderModel if encoder_decoder else DecoderModel
    try:
        with device_failures(type(model).__name__, engine):
            return kind(model, slots=slots, max_len=max_len)
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        # The errors of an unknown architecture in our calls cannot be predicted.
        name = type(model).__name__
        raise EngineError(engine, f"{name} cannot be served by steps over slots: {error}") from error


class SlotEngine(PrefixEngine):
    """Samples from a model over slots, and keeps the last token of each."""

    def __init__(
        self,
        model: SlotModel,
        info: EngineInfo,
        *,
        slots: int,
        eos_token_ids: frozenset[int],
        vocab_size: int | None,
        encoder_decoder: bool,
        prefix_refusal: str | None,
    ) -> None:
        """prefix_refusal: why prefixes cannot be reused (see `muai_lab.engines.prefixes`); None for a `PrefixModel`."""
        self.info = info
        self.slots = slots
        self.eos_token_ids = eos_token_ids
        self.vocab_size = vocab_size
        self.prompts = model.prompts
        self._encoder_decoder = encoder_decoder
        self._model: SlotModel | None = model
        self._prefix_refusal = prefix_refusal
        self._sampler = SlotSampler()
        self._last: dict[int, int] = {}

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[PrefillChunk]) -> list[int | None]:
        """See `StepEngine.prefill`."""
        if not chunks:
            return []
        model = self._live()
        logits = model.prefill(chunks)
        final = [chunk for chunk in chunks if chunk.final]
        for row, chunk in enumerate(final):
            self._sampler.open(chunk.slot, chunk.sampling, drawn=len(chunk.output))
            if chunk.output and self.prompts is not PromptCompute.PIECES:
                logits[row] = _after_output(model, chunk)
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

    def prefix_refusal(self) -> str | None:
        """See `StepEngine.prefix_refusal`."""
        return self._prefix_refusal

    def position_bytes(self) -> int:
        """See `PrefixEngine.position_bytes`."""
        return 0 if self._prefix_refusal else self._prefixes().position_bytes

    @torch.inference_mode()
    def copy_out(self, slot: int, begin: int, end: int, block: int) -> Sequence[KVBlock]:
        """See `PrefixEngine.copy_out`."""
        return self._prefixes().copy_out(slot, begin, end, block)

    @torch.inference_mode()
    def copy_in(self, slot: int, blocks: Sequence[KVBlock]) -> None:
        """See `PrefixEngine.copy_in`."""
        self._prefixes().copy_in(slot, blocks)

    def close(self) -> None:
        """Drop the model and its memory."""
        self._model = None
        if self.info.device != "cpu":
            gc.collect()  # reference cycles of failed steps still hold memory that the next engine needs
            torch.cuda.empty_cache()

    def prompt_limit(self) -> int:
        """See `Engine.prompt_limit`. An encoder's prompt does not share positions with the output."""
        return self.info.max_model_len if self._encoder_decoder else super().prompt_limit()

    def output_limit(self, prompt_tokens: int) -> int:
        """See `Engine.output_limit`."""
        return self.info.max_model_len if self._encoder_decoder else super().output_limit(prompt_tokens)

    def _live(self) -> SlotModel:
        if self._model is None:
            raise EngineError(self.info.name, "the engine is closed")
        return self._model

    def _prefixes(self) -> PrefixModel:
        model = self._live()
        if self._prefix_refusal is not None or not isinstance(model, PrefixModel):
            raise NotImplementedError(self._prefix_refusal)
        return model

    def _choose(self, logits: torch.Tensor, slots: Sequence[int]) -> list[int]:
        try:
            tokens = self._sampler.choose(logits, slots)
        except SlotFaults as partly:
            self._last.update(partly.tokens)
            raise
        self._last.update(zip(slots, tokens, strict=True))
        return tokens


def _after_output(model: SlotModel, chunk: PrefillChunk) -> torch.Tensor:
    """Return logits `[vocabulary]` after the tokens that the sequence had produced when it lost its slot."""
    for token in chunk.output:
        logits = model.decode([chunk.slot], [token])
    return logits[0]
