"""Attention of one engine step, put in place of a Hugging Face model's own.

Transformers lets the attention function of a model be replaced by name and hands keyword arguments of the model's
forward through to it: ours carries the step, which knows which packed token belongs to which sequence.
Source of the mechanism: https://huggingface.co/docs/transformers/attention_interface
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)

from muai_lab.engines.pytorch.slots import KVRows, KVShape, KVSlots

ATTENTION_NAME = "muai_slots"

# Arguments that change the result, of architectures whose attention is more than softmax(q·k)·v.
_UNSERVED_ARGUMENTS = ("softcap", "s_aux", "position_bias", "indices", "block_indices")


class AttentionStep(ABC):
    """One step's attention, called for every layer."""

    @abstractmethod
    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Attention output `[1, tokens, heads, dim]`.

        query `[1, heads, tokens, dim]`, key and value `[1, kv_heads, tokens, dim]` of the packed tokens.
        window: positions that a token sees, itself included; None for all.
        """


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    slot_step: AttentionStep | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The function that Transformers calls. Raises ValueError for a model whose attention is not ours."""
    if slot_step is None:
        raise ValueError("its attention does not pass on the step")
    if isinstance(slot_step, Survey):
        _refuse_unserved(module, others)
    layer: int = module.layer_idx  # type: ignore[assignment]
    return slot_step.attend(layer, query, key, value, scaling, sliding_window), None


def _refuse_unserved(module: torch.nn.Module, others: Mapping[str, Any]) -> None:
    if getattr(module, "is_causal", True) is False:
        raise ValueError("its attention looks ahead")
    for name in _UNSERVED_ARGUMENTS:
        if others.get(name) is not None:
            raise ValueError(f"its attention needs {name!r}")


@dataclass(slots=True)
class Survey(AttentionStep):
    """Runs one prompt without memory, to learn what each layer's keys and values look like."""

    shapes: dict[int, KVShape] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """See `AttentionStep.attend`. Raises ValueError for heads that do not fit each other."""
        heads, shared = query.shape[1], key.shape[1]
        if not heads or not shared or heads % shared:
            raise ValueError(f"layer {layer} attends with {heads} query heads over {shared} key heads")
        self.shapes[layer] = KVShape(key.shape[1], key.shape[3], value.shape[3])
        self.windows[layer] = window
        return _attention(query, key, value, scaling=scaling, is_causal=True).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Packed tokens `[begin, end)` belong to `row` of `rows`, at positions from `start`."""

    rows: KVRows
    row: int
    begin: int
    end: int
    start: int


@dataclass(frozen=True, slots=True)
class PrefillStep(AttentionStep):
    """Prompt tokens of several sequences, one after the other."""

    spans: Sequence[TokenSpan]
    _masks: dict[tuple[int, int | None], torch.Tensor | None] = field(default_factory=dict)  # by span and window

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """See `AttentionStep.attend`."""
        pieces = []
        for number, span in enumerate(self.spans):
            stop = span.start + span.end - span.begin
            keys, values = key[:, :, span.begin : span.end], value[:, :, span.begin : span.end]
            row_keys, row_values = span.rows.keys[layer][span.row], span.rows.values[layer][span.row]
            row_keys[:, span.start : stop] = keys[0]
            row_values[:, span.start : stop] = values[0]
            if span.start > 0:
                keys, values = row_keys[None, :, :stop], row_values[None, :, :stop]
            if (number, window) not in self._masks:
                self._masks[number, window] = _chunk_mask(span.start, stop, window, query.device)
            mask = self._masks[number, window]
            queries = query[:, :, span.begin : span.end]
            pieces.append(_attention(queries, keys, values, scaling=scaling, mask=mask, is_causal=mask is None))
        attended = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
        return attended.transpose(1, 2)


def _chunk_mask(start: int, stop: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Boolean mask `[tokens, stop]` (True: may attend), or None where plain causal attention is meant."""
    if start == 0 and (window is None or stop <= window):
        return None
    positions = torch.arange(start, stop, device=device).unsqueeze(1)
    columns = torch.arange(stop, device=device)
    mask = columns <= positions
    if window is not None:
        mask &= columns > positions - window
    return mask


class DecodeStep(AttentionStep):
    """One token for every row of some groups of rows, in the order of groups and rows."""

    def __init__(self, kv: KVSlots, groups: Sequence[KVRows], device: torch.device) -> None:
        """Each row's new token comes behind its present length. A full row (which only looks on) keeps its length."""
        self.slots = [slot for group in groups for slot in group.slots]
        self._groups = []
        begin = 0
        for group in groups:
            positions = [min(length, kv.max_len - 1) for length in group.lengths]
            self._groups.append(_DecodeGroup(group, positions, begin, device))
            begin += group.rows
        self.positions = [position for group in self._groups for position in group.positions]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """See `AttentionStep.attend`."""
        by_token = query.transpose(1, 2)[0].unsqueeze(2)  # [tokens, heads, 1, dim]
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)  # [tokens, kv_heads, dim]
        pieces = [group.attend(layer, by_token, keys, values, scaling, window) for group in self._groups]
        attended = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return attended.transpose(1, 2).transpose(0, 1)


class _DecodeGroup:
    """One group of rows within a decode step; `begin` is the packed index of its first token."""

    def __init__(self, rows: KVRows, positions: list[int], begin: int, device: torch.device) -> None:
        self.positions = positions
        self._rows = rows
        self._tokens = slice(begin, begin + len(positions))
        self._longest = max(positions) + 1
        self._ragged = min(positions) + 1 < self._longest
        self._at = torch.tensor(positions, device=device)
        self._targets: dict[int, torch.Tensor] = {}  # by number of heads
        self._masks: dict[int | None, torch.Tensor | None] = {}  # by window

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Write the group's new keys and values, then attend; `[rows, heads, 1, dim]`."""
        keys, values = self._rows.keys[layer], self._rows.values[layer]
        target = self._target(keys.shape[1])
        _write(keys, target, key[self._tokens])
        _write(values, target, value[self._tokens])
        count = len(self.positions)
        attention = _grouped_attention if _groups_pay(query, keys) else _attention
        return attention(
            query[self._tokens],
            keys[:count, :, : self._longest],
            values[:count, :, : self._longest],
            scaling=scaling,
            mask=self._mask(window, query.dtype),
        )

    def _target(self, heads: int) -> torch.Tensor:
        """Index of each row's and head's new position in `[rows × heads × positions]`."""
        if heads not in self._targets:
            capacity = self._rows.positions
            place = torch.arange(len(self.positions) * heads, device=self._at.device).view(-1, heads) * capacity
            self._targets[heads] = (place + self._at.unsqueeze(1)).flatten()
        return self._targets[heads]

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive mask `[rows, 1, 1, longest]`: 0 on a row's own positions, -inf behind its end; None: all may be."""
        if window not in self._masks:
            mask = None
            if self._ragged or (window is not None and self._longest > window):
                columns = torch.arange(self._longest, device=self._at.device)
                last = self._at.unsqueeze(1)
                hidden = columns > last
                if window is not None:
                    hidden |= columns <= last - window
                mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
                mask = mask.masked_fill_(hidden, float("-inf"))[:, None, None, :]
            self._masks[window] = mask
        return self._masks[window]


def _write(memory: torch.Tensor, target: torch.Tensor, new: torch.Tensor) -> None:
    """Copy `new` `[rows, heads, dim]` to positions of `memory` `[rows, heads, positions, dim]`."""
    dim = memory.shape[3]
    memory.view(-1, dim).index_copy_(0, target, new.reshape(-1, dim))


def _groups_pay(query: torch.Tensor, keys: torch.Tensor) -> bool:
    """True if one new token a row is attended faster by `_grouped_attention`: on a GPU, and on a CPU for wide groups.

    With two query heads a key head a CPU takes half as long again, with seven two thirds of the time.
    """
    queries_per_key = query.shape[1] // keys.shape[1]
    return queries_per_key > 1 if query.device.type != "cpu" else queries_per_key >= 4


def _grouped_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """The same as `_attention` for one token a row: heads that share a key head are attended as its tokens.

    They see the same positions, so nothing changes but the shape, and every kernel takes it. CUDA's fused kernels take
    no mask together with heads that share keys: the keys would be copied for each head, in each layer of each step.
    """
    rows, _, _, dim = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, dim)  # [rows, kv_heads, heads / kv_heads, dim]
    attended = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return attended.flatten(1, 2).unsqueeze(2)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """softmax(q·k)·v over `[batch, heads, tokens, dim]`; several query heads may share one key head."""
    share = query.shape[1] // key.shape[1]
    if share > 1 and not _takes_shared_heads(query, value, mask):
        # Copied here, a prompt's keys take as much memory as its queries; PyTorch's way out would be a whole matrix of
        # scores, `[heads, tokens, positions]` in fp32.
        key, value = key.repeat_interleave(share, dim=1), value.repeat_interleave(share, dim=1)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _takes_shared_heads(query: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """True if a fused kernel of the device takes fewer key heads than query heads: on CUDA the flash kernel only.

    Source: transformers.integrations.sdpa_attention.use_gqa_in_sdpa, and PyTorch's sdp_utils.cpp
    """
    if query.device.type == "cpu":
        return True
    return mask is None and query.dtype is not torch.float32 and query.shape[3] == value.shape[3] <= 256
