"""Key/value memory of running sequences.

`KVRows` holds sequences of similar length as dense rows of one tensor per layer, so that a decode step works on plain
views `[0:rows, :, 0:longest]` without gathering. `KVSlots` sorts sequences by length into several `KVRows`, and moves
one that outgrows its rows. So attention reads little more than each sequence holds, and a long sequence takes neither
memory nor time from the short ones.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_FIRST_BLOCK = 2048  # positions that a `KVRows` has room for at first, over all of its rows
_FIRST_POSITIONS = 128


@dataclass(frozen=True, slots=True)
class KVShape:
    """Shape of one layer's keys and values; layers may differ."""

    heads: int
    key_dim: int
    value_dim: int


class KVRows:
    """Keys and values `[rows, heads, positions, dim]` per layer, with the length of each row.

    Rows are dense: the last row moves into one that is freed. Both rows and positions grow by doubling.
    """

    def __init__(
        self, layers: Sequence[KVShape], *, slots: int, max_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.max_len = max_len
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.lengths: list[int] = []  # of each live row
        self.slots: list[int] = []  # of each live row
        self._layers = layers
        self._most_rows = slots
        self._dtype = dtype
        self._device = device
        self._row_capacity = 0
        self._position_capacity = 0
        self._row_of: dict[int, int] = {}

    @property
    def rows(self) -> int:
        """Number of live rows."""
        return len(self.slots)

    @property
    def positions(self) -> int:
        """Positions that each row has room for now."""
        return self._position_capacity

    @property
    def bytes(self) -> int:
        """Memory held by keys and values, in bytes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    @property
    def position_bytes(self) -> int:
        """Bytes that the keys and values of one position take."""
        return sum(layer.heads * (layer.key_dim + layer.value_dim) for layer in self._layers) * self._dtype.itemsize

    def row(self, slot: int) -> int:
        """Return the row of an open slot. Valid until a slot is released."""
        return self._row_of[slot]

    def open(self, slot: int) -> int:
        """Return the slot's row; an empty one if the slot had none."""
        if slot in self._row_of:
            return self._row_of[slot]
        if self.rows == self._most_rows:
            raise ValueError(f"slot {slot} is one more than the {self._most_rows} there are")
        row = self.rows
        self._row_of[slot] = row
        self.slots.append(slot)
        self.lengths.append(0)
        return row

    def release(self, slot: int) -> None:
        """Free the slot's row; the last row moves into its place. An unknown slot is ignored."""
        row = self._row_of.pop(slot, None)
        if row is None:
            return
        last_slot, length = self.slots.pop(), self.lengths.pop()
        last = self.rows
        if row != last:
            self.slots[row], self.lengths[row] = last_slot, length
            self._row_of[last_slot] = row
            for tensor in (*self.keys, *self.values):
                tensor[row, :, :length] = tensor[last, :, :length]
        if not self.rows and self._row_capacity > self._first_rows():
            # The last of many rows is gone: sequences of other lengths may need the memory.
            self.keys, self.values, self._row_capacity, self._position_capacity = [], [], 0, 0

    def reserve(self, positions: int) -> None:
        """Make room for `positions` positions in every live row.

        Raises ValueError for more than `max_len`. Raises torch.OutOfMemoryError if the GPU has no room; all rows then
        stay as they were.
        """
        if positions > self.max_len:
            raise ValueError(f"{positions} positions asked of rows that hold at most {self.max_len}")
        rows, capacity = self._row_capacity, self._position_capacity
        while rows < self.rows:
            rows = min(max(self._first_rows(), 2 * rows), self._most_rows)
        while capacity < positions:
            capacity = min(max(_FIRST_POSITIONS, 2 * capacity), self.max_len)
        if (rows, capacity) == (self._row_capacity, self._position_capacity):
            return
        self._check_room(rows * capacity * self.position_bytes)
        self.keys = self._grown(self.keys, rows, capacity, [layer.key_dim for layer in self._layers])
        self.values = self._grown(self.values, rows, capacity, [layer.value_dim for layer in self._layers])
        self._row_capacity, self._position_capacity = rows, capacity

    def _check_room(self, wanted: int) -> None:
        """Raise before any tensor is freed: a growth that fails halfway would lose the rows of other sequences."""
        # Layer by layer the new tensors replace the old ones, so there is one more layer at a time.
        peak = wanted - self.bytes + wanted // len(self._layers)
        free = _free_bytes(self._device)
        if peak > free:
            raise torch.OutOfMemoryError(
                f"keys and values of {self.rows} sequences of up to {self.max_len} positions need {peak / 2**20:.0f} "
                f"MiB more, and {free / 2**20:.0f} MiB are free: lower optimization.batcher.max_batch_size or the "
                "engine's max_model_len"
            )

    def _first_rows(self) -> int:
        return min(max(1, _FIRST_BLOCK // self.max_len), self._most_rows)

    def _grown(self, old: list[torch.Tensor], rows: int, positions: int, dims: list[int]) -> list[torch.Tensor]:
        grown = []
        for index, (layer, dim) in enumerate(zip(self._layers, dims, strict=True)):
            tensor = _zeros((rows, layer.heads, positions, dim), self._dtype, self._device)
            if old:
                for row, length in enumerate(self.lengths[: self._row_capacity]):
                    tensor[row, :, :length] = old[index][row, :, :length]
                old[index] = torch.empty(0)  # free layer by layer: the peak is one layer, not a second cache
            grown.append(tensor)
        return grown


class KVSlots:
    """Key/value memory of slots, sorted into `KVRows` by length.

    layers: shape of each layer. slots: most sequences. max_len: most positions of one sequence.
    """

    def __init__(
        self, layers: Sequence[KVShape], *, slots: int, max_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.max_len = max_len
        self._groups = [
            KVRows(layers, slots=slots, max_len=length, dtype=dtype, device=device) for length in _lengths(max_len)
        ]
        self._limits = [group.max_len for group in self._groups]
        self._group_of: dict[int, KVRows] = {}

    @property
    def bytes(self) -> int:
        """Memory held by keys and values, in bytes."""
        return sum(group.bytes for group in self._groups)

    @property
    def position_bytes(self) -> int:
        """Bytes that the keys and values of one position take."""
        return self._groups[0].position_bytes

    def groups(self) -> list[KVRows]:
        """Return the rows in use, short sequences first."""
        return [group for group in self._groups if group.rows]

    def slots(self) -> list[int]:
        """Return the slots that hold a sequence."""
        return list(self._group_of)

    def length(self, slot: int) -> int:
        """Return the number of positions that the slot holds."""
        group = self._group_of.get(slot)
        return 0 if group is None else group.lengths[group.row(slot)]

    def set_length(self, slot: int, length: int) -> None:
        """Set how many positions of the slot are filled."""
        group = self._group_of[slot]
        group.lengths[group.row(slot)] = length

    def place(self, slot: int) -> tuple[KVRows, int]:
        """Return the rows that hold the slot's sequence, and its row in them. Valid until `fit` or `release`."""
        group = self._group_of[slot]
        return group, group.row(slot)

    def fit(self, slot: int, positions: int) -> None:
        """Make room for `positions` positions, and open the slot if needed.

        Raises ValueError beyond `max_len`, and torch.OutOfMemoryError as `KVRows.reserve` does: the slot then keeps its
        contents.
        """
        if positions > self.max_len:
            raise ValueError(f"slot {slot}: {positions} positions asked, and a sequence has at most {self.max_len}")
        old = self._group_of.get(slot)
        if old is not None and positions <= old.max_len:
            return
        new = self._groups[bisect_left(self._limits, positions)]
        row = new.open(slot)
        try:
            new.reserve(new.max_len)
        except torch.OutOfMemoryError:
            new.release(slot)
            raise
        self._group_of[slot] = new
        if old is not None:
            old_row = old.row(slot)
            length = old.lengths[old_row]
            for target, origin in zip((*new.keys, *new.values), (*old.keys, *old.values), strict=True):
                target[row, :, :length] = origin[old_row, :, :length]
            new.lengths[row] = length
            old.release(slot)

    def release(self, slot: int) -> None:
        """Free the slot; an unknown one is ignored."""
        group = self._group_of.pop(slot, None)
        if group is not None:
            group.release(slot)


def _free_bytes(device: torch.device) -> float:
    """Return the bytes for new tensors: free memory of the GPU, and memory that PyTorch has reserved but not used."""
    if device.type != "cuda":
        return math.inf  # a CPU allocates pages when they are first written, see `_zeros`
    free, _total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros, not empty memory: positions after a row's end are masked, but 0 × NaN would still be NaN.

    On a CPU they come from numpy, with which the system allocates zeroed pages when they are first written. Room that
    no sequence has reached takes no memory and no time.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def _lengths(max_len: int) -> list[int]:
    """Return row lengths 128, 256, 384, 512, 768, 1024, 1536, ... `max_len`: dense where most sequences are."""
    lengths = [128, 256, 384]
    while lengths[-1] < max_len:
        lengths.append(lengths[-2] * 2)
    return [length for length in lengths if length < max_len] + [max_len]
