"""Decoder-only models: the Hugging Face forward pass over packed tokens, with attention over our slots.

A step packs the tokens of all sequences into one row `[1, tokens]`, so nothing is padded: the model's own layers see
plain tokens, and only the attention function, which Transformers lets us replace by name, knows which token belongs to
which sequence. It writes new keys and values into the slots and attends over each sequence's own positions.
Source of the mechanism: https://huggingface.co/docs/transformers/attention_interface
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)

from muai_lab.engines.base import PrefillChunk
from muai_lab.engines.pytorch.slots import KVRows, KVShape

ATTENTION_NAME = "muai_slots"


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """Tokens `[begin, end)` of the packed row belong to `row`, at positions from `start`."""

    row: int
    begin: int
    end: int
    start: int


@dataclass(slots=True)
class SlotStep:
    """What the attention function needs to know of one step."""

    kv: KVRows
    spans: Sequence[PrefillSpan] = ()
    rows: torch.Tensor | None = None  # decode: row index of each packed token
    positions: torch.Tensor | None = None  # decode: position of each packed token
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)  # decode: additive mask by sliding window
    longest: int = 0


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    slot_step: SlotStep | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer; query `[1, heads, tokens, dim]`, key and value `[1, kv_heads, tokens, dim]`.

    Returns `[1, tokens, heads, dim]`.
    """
    if slot_step is None:
        raise RuntimeError("slot attention was called outside an engine step")
    layer: int = module.layer_idx  # type: ignore[assignment]
    if slot_step.rows is not None:
        return _decode(slot_step, layer, query, key, value, scaling, sliding_window), None
    return _prefill(slot_step, layer, query, key, value, scaling, sliding_window), None


def _decode(
    step: SlotStep,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    keys, values = step.kv.keys[layer], step.kv.values[layer]
    rows = step.kv.rows
    # [1, kv_heads, tokens, dim] -> [tokens, kv_heads, dim]: one token a row, written at that row's own position
    keys[step.rows, :, step.positions] = key[0].transpose(0, 1)
    values[step.rows, :, step.positions] = value[0].transpose(0, 1)
    heads, dim = query.shape[1], query.shape[3]
    attended = F.scaled_dot_product_attention(
        query[0].transpose(0, 1).reshape(rows, heads, 1, dim),
        keys[:rows, :, : step.longest],
        values[:rows, :, : step.longest],
        attn_mask=_decode_mask(step, window, query.dtype),
        scale=scaling,
        enable_gqa=heads != keys.shape[1],
    )
    return attended.reshape(1, rows, heads, attended.shape[-1])


def _decode_mask(step: SlotStep, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask `[rows, 1, 1, longest]`: 0 on a row's own positions, -inf behind its end; shared by all layers."""
    assert step.positions is not None
    if window not in step.masks:
        columns = torch.arange(step.longest, device=step.positions.device)
        last = step.positions.unsqueeze(1)
        hidden = columns > last
        if window is not None:
            hidden |= columns <= last - window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
        step.masks[window] = mask[:, None, None, :]
    return step.masks[window]


def _prefill(
    step: SlotStep,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    keys, values = step.kv.keys[layer], step.kv.values[layer]
    heads = query.shape[1]
    pieces = []
    for span in step.spans:
        stop = span.start + span.end - span.begin
        keys[span.row, :, span.start : stop] = key[0, :, span.begin : span.end]
        values[span.row, :, span.start : stop] = value[0, :, span.begin : span.end]
        mask = _chunk_mask(span.start, stop, window, query)
        pieces.append(
            F.scaled_dot_product_attention(
                query[:, :, span.begin : span.end],
                keys[span.row : span.row + 1, :, :stop],
                values[span.row : span.row + 1, :, :stop],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=heads != keys.shape[1],
            )
        )
    attended = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
    return attended.transpose(1, 2)


def _chunk_mask(start: int, stop: int, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """Boolean mask `[tokens, stop]` (True: may attend), or None where plain causal attention is meant."""
    if start == 0 and (window is None or stop <= window):
        return None
    positions = torch.arange(start, stop, device=like.device).unsqueeze(1)
    columns = torch.arange(stop, device=like.device)
    mask = columns <= positions
    if window is not None:
        mask &= columns > positions - window
    return mask


class DecoderModel:
    """A decoder-only Hugging Face model over slots: packed prefill, one-token decode."""

    def __init__(self, model: Any, *, slots: int, max_len: int) -> None:
        self._model = model
        config = model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layers = [KVShape(heads, dim, dim)] * config.num_hidden_layers
        self._device: torch.device = model.device
        self.kv = KVRows(layers, slots=slots, max_len=max_len, dtype=model.dtype, device=self._device)

    def prefill(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """Compute the chunks' tokens; returns the logits of each final chunk's last token `[final chunks, vocabulary]`."""
        spans, tokens, positions, last = [], [], [], []
        for chunk in chunks:
            row = self.kv.open(chunk.slot)
            begin = len(tokens)
            tokens.extend(chunk.tokens)
            positions.extend(range(chunk.start, chunk.start + len(chunk.tokens)))
            spans.append(PrefillSpan(row, begin, len(tokens), chunk.start))
            self.kv.lengths[row] = chunk.start + len(chunk.tokens)
            if chunk.final:
                last.append(len(tokens) - 1)
        self.kv.reserve(max(span.start + span.end - span.begin for span in spans))
        return self._forward(tokens, positions, SlotStep(self.kv, spans=spans), last)

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append `tokens[i]` to `slots[i]`; returns the logits that follow them `[slots, vocabulary]`.

        Rows that are open but not asked for are attended too (their result is dropped), so that views stay dense.
        """
        kv = self.kv
        by_slot = dict(zip(slots, tokens, strict=True))
        live = kv.slots_by_row()
        step_tokens = [by_slot.get(slot, 0) for slot in live]
        # A row that only looks on writes behind its live positions, where its next real token will go.
        positions = [min(length, kv.max_len - 1) for length in kv.lengths]
        longest = max(positions) + 1
        kv.reserve(longest)
        step = SlotStep(
            kv,
            rows=torch.arange(len(live), device=self._device),
            positions=torch.tensor(positions, device=self._device),
            longest=longest,
        )
        wanted = [kv.row(slot) for slot in slots]
        logits = self._forward(step_tokens, positions, step, wanted)
        for row in wanted:
            kv.lengths[row] += 1
        return logits

    def release(self, slot: int) -> None:
        """Free the slot."""
        self.kv.release(slot)

    def _forward(self, tokens: list[int], positions: list[int], step: SlotStep, wanted: list[int]) -> torch.Tensor:
        device = self._device
        output = self._model(
            input_ids=torch.tensor(tokens, device=device).unsqueeze(0),
            position_ids=torch.tensor(positions, device=device).unsqueeze(0),
            use_cache=False,
            logits_to_keep=torch.tensor(wanted, dtype=torch.long, device=device),
            slot_step=step,
        )
        logits: torch.Tensor = output.logits[0]
        return logits
