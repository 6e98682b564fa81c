"""Decoder-only models: the Hugging Face forward pass over packed tokens, with attention over our slots.

A step packs the tokens of all sequences into one row `[1, tokens]`, without padding. The model's own layers see plain
tokens; only the attention function knows the sequence of each token (see `attention`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from muai_lab.engines.base import PrefillChunk, PromptCompute
from muai_lab.engines.pytorch import kv_blocks
from muai_lab.engines.pytorch.attention import AttentionStep, DecodeStep, PrefillStep, Survey, TokenSpan
from muai_lab.engines.pytorch.kv_blocks import TensorBlock
from muai_lab.engines.pytorch.slots import KVShape, KVSlots

_LAYER_TYPES = {"full_attention", "sliding_attention"}

# Most tokens in one forward pass of a prefill. On a CPU more would not stay in its caches between the operations of one
# layer. A GPU needs many: launching the operations of one pass takes as long as computing thousands of tokens.
_PACK_TOKENS = {"cpu": 1024, "cuda": 8192}


class DecoderModel:
    """A decoder-only Hugging Face model over slots: packed prefill, one-token decode."""

    prompts = PromptCompute.PIECES

    def __init__(self, model: Any, *, slots: int, max_len: int) -> None:
        """Raises ValueError, TypeError, AttributeError or RuntimeError for a model that cannot run over slots."""
        self._model = model
        self._device: torch.device = model.device
        self._slots = slots
        self._pack_tokens = _PACK_TOKENS.get(self._device.type, max(_PACK_TOKENS.values()))
        layers = self._survey()
        self._kv = KVSlots(layers, slots=slots, max_len=max_len, dtype=model.dtype, device=self._device)
        self._prove()

    @property
    def kv_bytes(self) -> int:
        """Memory that keys and values take, in bytes."""
        return self._kv.bytes

    @property
    def most_kv_bytes(self) -> int:
        """Memory that keys and values take if every slot fills all of its positions, in bytes."""
        return self._slots * self._kv.max_len * self._kv.position_bytes

    def prefill(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """Compute the chunks' tokens. Returns each final chunk's last logits `[final chunks, vocabulary]`."""
        for chunk in chunks:
            self._kv.fit(chunk.slot, chunk.start + len(chunk.tokens))
        logits = [self._prefill_pack(pack) for pack in _packs(chunks, self._pack_tokens)]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append `tokens[i]` to `slots[i]`. Returns the logits that follow them `[slots, vocabulary]`.

        All rows in the same groups are computed, so that views stay dense; the results of the others are dropped. They
        write after their own end, where their next real token will go.
        """
        kv = self._kv
        for slot in kv.slots():
            kv.fit(slot, min(kv.length(slot) + 1, kv.max_len))
        for slot in slots:
            kv.fit(slot, kv.length(slot) + 1)
        by_slot = dict(zip(slots, tokens, strict=True))
        groups = [group for group in kv.groups() if any(slot in by_slot for slot in group.slots)]
        step = DecodeStep(kv, groups, self._device)
        index = {slot: place for place, slot in enumerate(step.slots)}
        wanted = [index[slot] for slot in slots]
        logits = self._forward([by_slot.get(slot, 0) for slot in step.slots], step.positions, step, wanted)
        for slot in slots:
            kv.set_length(slot, kv.length(slot) + 1)
        return logits

    def release(self, slot: int) -> None:
        """Free the slot."""
        self._kv.release(slot)

    @property
    def position_bytes(self) -> int:
        """See `PrefixModel.position_bytes`."""
        return self._kv.position_bytes

    def copy_out(self, slot: int, begin: int, end: int, block: int) -> list[TensorBlock]:
        """See `PrefixEngine.copy_out`."""
        return kv_blocks.copy_out(*self._kv.place(slot), begin, end, block)

    def copy_in(self, slot: int, blocks: Sequence[TensorBlock]) -> None:
        """See `PrefixEngine.copy_in`."""
        self._kv.fit(slot, kv_blocks.positions(blocks))
        kv_blocks.copy_in(*self._kv.place(slot), blocks)

    def _prefill_pack(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        spans: list[TokenSpan] = []
        tokens: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        for chunk in chunks:
            rows, row = self._kv.place(chunk.slot)
            begin, stop = len(tokens), chunk.start + len(chunk.tokens)
            tokens.extend(chunk.tokens)
            positions.extend(range(chunk.start, stop))
            spans.append(TokenSpan(rows, row, begin, len(tokens), chunk.start))
            rows.lengths[row] = stop
            if chunk.final:
                last.append(len(tokens) - 1)
        return self._forward(tokens, positions, PrefillStep(spans), last)

    def _forward(self, tokens: list[int], positions: list[int], step: AttentionStep, wanted: list[int]) -> torch.Tensor:
        device = self._device
        # One copy to the device for both, because each copy waits until it is done.
        packed = torch.tensor([[tokens], [positions]], device=device)
        output = self._model(
            input_ids=packed[0],
            position_ids=packed[1],
            use_cache=False,
            logits_to_keep=torch.tensor(wanted, dtype=torch.long, device=device),
            slot_step=step,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    @torch.inference_mode()
    def _survey(self) -> list[KVShape]:
        """Return the shapes of the layers' keys and values, as the model calls its attention with them."""
        config = self._model.config.get_text_config(decoder=True)
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        unserved = sorted(set(kinds) - _LAYER_TYPES)
        if unserved:
            raise ValueError(f"it has layers of type {unserved[0]}")
        survey = Survey()
        self._forward([0, 0], [0, 1], survey, [1])
        if sorted(survey.shapes) != list(range(config.num_hidden_layers)):
            raise ValueError(f"{len(survey.shapes)} of its {config.num_hidden_layers} layers attend")
        if any(kind == "sliding_attention" and survey.windows[at] is None for at, kind in enumerate(kinds)):
            raise ValueError("its attention does not say how far its window reaches")
        return [survey.shapes[layer] for layer in range(config.num_hidden_layers)]

    @torch.inference_mode()
    def _prove(self) -> None:
        """Check that steps of one token give the same as the whole prompt: the slots hold all state of the model."""
        prompt = (0, 1, 2)
        whole = self.prefill([PrefillChunk(0, prompt)])
        self.release(0)
        self.prefill([PrefillChunk(0, prompt[:2])])
        stepped = self.decode([0], prompt[2:])
        self.release(0)
        # Loose, since low precision and routed experts differ a little; lost state differs entirely.
        likeness = torch.cosine_similarity(whole.float(), stepped.float()).item()
        if not likeness > 0.9:
            raise ValueError(f"a step and a whole prompt differ (cosine {likeness:.3f}): it keeps state of its own")


def _packs(chunks: Sequence[PrefillChunk], most: int) -> Iterator[Sequence[PrefillChunk]]:
    """Yield the chunks in order, in packs of at most `most` tokens; longer chunks are cut."""
    pack: list[PrefillChunk] = []
    size = 0
    for chunk in chunks:
        for piece in _pieces(chunk, most):
            if pack and size + len(piece.tokens) > most:
                yield pack
                pack, size = [], 0
            pack.append(piece)
            size += len(piece.tokens)
    yield pack


def _pieces(chunk: PrefillChunk, most: int) -> Iterator[PrefillChunk]:
    count = len(chunk.tokens)
    for begin in range(0, count, most):
        end = min(begin + most, count)
        tokens = chunk.tokens[begin:end]
        yield replace(chunk, tokens=tokens, start=chunk.start + begin, final=chunk.final and end == count)
