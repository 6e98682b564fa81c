"""Key/value memory of a decoder: one row of every layer's tensors for each live sequence.

Rows are kept dense (the last row moves into a freed one), so that a decode step works on plain views
`[0:rows, :, 0:longest]` with no gathering. Capacity grows by doubling, in rows and in positions, so that memory follows
what the traffic needs and not `slots × max_model_len`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_FIRST_ROWS = 8
_FIRST_POSITIONS = 256


@dataclass(frozen=True, slots=True)
class KVShape:
    """Shape of one layer's keys and values. Models whose layers differ have one KVShape a layer."""

    heads: int
    key_dim: int
    value_dim: int


class KVRows:
    """Keys and values `[rows, heads, positions, dim]` per layer, with the length of each row."""

    def __init__(
        self, layers: list[KVShape], *, slots: int, max_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._layers = layers
        self._slots = slots
        self._max_len = max_len
        self._dtype = dtype
        self._device = device
        self._row_capacity = 0
        self._position_capacity = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.lengths: list[int] = []  # of each live row
        self._row_of: dict[int, int] = {}
        self._slot_of: list[int] = []

    @property
    def rows(self) -> int:
        """Number of live rows."""
        return len(self._slot_of)

    @property
    def bytes(self) -> int:
        """Memory held by keys and values, in bytes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    @property
    def max_len(self) -> int:
        """Most positions that a row can hold."""
        return self._max_len

    def row(self, slot: int) -> int:
        """Row of a slot that is open."""
        return self._row_of[slot]

    def slots_by_row(self) -> list[int]:
        """Slot of each live row, in row order."""
        return list(self._slot_of)

    def open(self, slot: int) -> int:
        """The slot's row; an empty one if the slot had none."""
        if slot in self._row_of:
            return self._row_of[slot]
        row = len(self._slot_of)
        self._row_of[slot] = row
        self._slot_of.append(slot)
        self.lengths.append(0)
        return row

    def release(self, slot: int) -> None:
        """Free the slot's row; the last row moves into its place. An unknown slot is ignored."""
        row = self._row_of.pop(slot, None)
        if row is None:
            return
        last = len(self._slot_of) - 1
        if row != last:
            length = self.lengths[last]
            for tensor in (*self.keys, *self.values):
                tensor[row, :, :length] = tensor[last, :, :length]
            moved = self._slot_of[last]
            self._slot_of[row] = moved
            self._row_of[moved] = row
            self.lengths[row] = length
        self._slot_of.pop()
        self.lengths.pop()

    def reserve(self, positions: int) -> None:
        """Make room for `positions` positions in every live row, growing the tensors if they are too small."""
        rows = self._row_capacity
        while rows < self.rows:
            rows = min(max(_FIRST_ROWS, 2 * rows), self._slots)
        capacity = self._position_capacity
        while capacity < positions:
            capacity = min(max(_FIRST_POSITIONS, 2 * capacity), self._max_len)
            if capacity == self._max_len < positions:
                raise ValueError(f"{positions} positions asked of rows that hold at most {self._max_len}")
        if rows == self._row_capacity and capacity == self._position_capacity:
            return
        self.keys = self._grown(self.keys, rows, capacity, [layer.key_dim for layer in self._layers])
        self.values = self._grown(self.values, rows, capacity, [layer.value_dim for layer in self._layers])
        self._row_capacity, self._position_capacity = rows, capacity

    def _grown(self, old: list[torch.Tensor], rows: int, positions: int, dims: list[int]) -> list[torch.Tensor]:
        grown = []
        for index, (layer, dim) in enumerate(zip(self._layers, dims, strict=True)):
            # Zeros, not empty memory: positions behind a row's end are masked, but 0 × NaN would still be NaN.
            tensor = torch.zeros((rows, layer.heads, positions, dim), dtype=self._dtype, device=self._device)
            if old:
                tensor[: self._row_capacity, :, : self._position_capacity] = old[index]
                old[index] = torch.empty(0)  # free layer by layer: the peak is one layer, not a second cache
            grown.append(tensor)
        return grown
