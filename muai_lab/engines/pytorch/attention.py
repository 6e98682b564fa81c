"""The attention of one engine step, which replaces the attention of a Hugging Face model.

Transformers lets a model's attention function be replaced by name, and passes keyword arguments of the model's forward
on to it. Ours passes the step, which knows the sequence of each packed token.
Source: https://huggingface.co/docs/transformers/attention_interface
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from muai_lab.engines.pytorch.attention_kernels import attention, attention_of_one
from muai_lab.engines.pytorch.slots import KVRows, KVShape, KVSlots

ATTENTION_NAME = "muai_slots"

# Arguments of architectures whose attention is more than softmax(q·k)·v; each of them changes the result.
_UNSERVED_ARGUMENTS = ("softcap", "s_aux", "position_bias", "indices", "block_indices")


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One layer's attention over the packed tokens of a step.

    layer: its index. query: `[1, heads, tokens, dim]`. key, value: `[1, kv_heads, tokens, dim]`. scaling: of the
    scores, None for 1/sqrt(dim). window: positions that a token sees, itself included; None for all.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float | None = None
    window: int | None = None

    def by_token(self) -> AttentionCall:
        """Return the same call with query `[tokens, heads, 1, dim]`, and key and value `[tokens, kv_heads, dim]`."""
        query = self.query.transpose(1, 2)[0].unsqueeze(2)
        key, value = self.key[0].transpose(0, 1), self.value[0].transpose(0, 1)
        return AttentionCall(self.layer, query, key, value, self.scaling, self.window)


class AttentionStep(ABC):
    """The attention of one step, called for every layer."""

    @abstractmethod
    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Return the attention output `[1, tokens, heads, dim]`."""


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
    """Attend as Transformers asks for it. Raises ValueError for a model whose attention we cannot replace."""
    if slot_step is None:
        raise ValueError("its attention does not pass on the step")
    if isinstance(slot_step, Survey):
        _refuse_unserved(module, others)
    layer: int = module.layer_idx  # type: ignore[assignment]
    return slot_step.attend(AttentionCall(layer, query, key, value, scaling, sliding_window)), None


def _refuse_unserved(module: torch.nn.Module, others: Mapping[str, Any]) -> None:
    if getattr(module, "is_causal", True) is False:
        raise ValueError("its attention looks ahead")
    for name in _UNSERVED_ARGUMENTS:
        if others.get(name) is not None:
            raise ValueError(f"its attention needs {name!r}")


@dataclass(slots=True)
class Survey(AttentionStep):
    """Records the shapes of each layer's keys and values while one prompt runs without memory."""

    shapes: dict[int, KVShape] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """See `AttentionStep.attend`. Raises ValueError for heads that do not fit each other."""
        layer, heads, shared = call.layer, call.query.shape[1], call.key.shape[1]
        if not heads or not shared or heads % shared:
            raise ValueError(f"layer {layer} attends with {heads} query heads over {shared} key heads")
        self.shapes[layer] = KVShape(shared, call.key.shape[3], call.value.shape[3])
        self.windows[layer] = call.window
        return attention(call.query, call.key, call.value, scaling=call.scaling, is_causal=True).transpose(1, 2)


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

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """See `AttentionStep.attend`."""
        layer, window = call.layer, call.window
        pieces = []
        for number, span in enumerate(self.spans):
            stop = span.start + span.end - span.begin
            keys, values = call.key[:, :, span.begin : span.end], call.value[:, :, span.begin : span.end]
            row_keys, row_values = span.rows.keys[layer][span.row], span.rows.values[layer][span.row]
            row_keys[:, span.start : stop] = keys[0]
            row_values[:, span.start : stop] = values[0]
            if span.start > 0:
                keys, values = row_keys[None, :, :stop], row_values[None, :, :stop]
            if (number, window) not in self._masks:
                self._masks[number, window] = _chunk_mask(span.start, stop, window, call.query.device)
            mask = self._masks[number, window]
            queries = call.query[:, :, span.begin : span.end]
            pieces.append(attention(queries, keys, values, scaling=call.scaling, mask=mask, is_causal=mask is None))
        attended = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
        return attended.transpose(1, 2)


def _chunk_mask(start: int, stop: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return a boolean mask `[tokens, stop]` (True: may attend), or None for plain causal attention."""
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
        """Place each row's new token at its length. In a full row, whose result is unused, it replaces the last one."""
        self.slots = [slot for group in groups for slot in group.slots]
        self._groups = []
        begin = 0
        for group in groups:
            positions = [min(length, kv.max_len - 1) for length in group.lengths]
            self._groups.append(_DecodeGroup(group, positions, begin, device))
            begin += group.rows
        self.positions = [position for group in self._groups for position in group.positions]

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """See `AttentionStep.attend`."""
        by_token = call.by_token()
        pieces = [group.attend(by_token) for group in self._groups]
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

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Write the group's new keys and values, then attend: `[rows, heads, 1, dim]`. call: see `by_token`."""
        keys, values = self._rows.keys[call.layer], self._rows.values[call.layer]
        target = self._target(keys.shape[1])
        _write(keys, target, call.key[self._tokens])
        _write(values, target, call.value[self._tokens])
        count = len(self.positions)
        return attention_of_one(
            call.query[self._tokens],
            keys[:count, :, : self._longest],
            values[:count, :, : self._longest],
            scaling=call.scaling,
            mask=self._mask(call.window, call.query.dtype),
        )

    def _target(self, heads: int) -> torch.Tensor:
        """Return the index of each row's and head's new position in `[rows × heads × positions]`."""
        if heads not in self._targets:
            capacity = self._rows.positions
            place = torch.arange(len(self.positions) * heads, device=self._at.device).view(-1, heads) * capacity
            self._targets[heads] = (place + self._at.unsqueeze(1)).flatten()
        return self._targets[heads]

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Return an additive mask `[rows, 1, 1, longest]`, -inf where a row may not attend, or None."""
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
