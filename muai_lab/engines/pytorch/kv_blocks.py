"""Copies of the keys and values of one sequence, in blocks of positions, for the prefix cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from muai_lab.engines.pytorch.slots import KVRows

# Positions that are copied at once: during a copy they are in memory twice.
_PASS_POSITIONS = 1024


@dataclass(frozen=True, slots=True)
class TensorBlock:
    """Keys and values of a block's positions in all layers.

    tensors: one for each shape `[heads, dim]` that occurs, `[keys and values of layers, heads, positions, dim]`.
    """

    tensors: tuple[torch.Tensor, ...]
    nbytes: int


def copy_out(rows: KVRows, row: int, begin: int, end: int, block: int) -> list[TensorBlock]:
    """Copy the positions `begin` to `end` of a row in blocks of `block` positions.

    Raises ValueError if the row does not hold them, or if they are no whole blocks.
    """
    if not 0 <= begin <= end <= rows.lengths[row] or (end - begin) % block:
        raise ValueError(f"positions {begin} to {end} of {rows.lengths[row]} are asked in blocks of {block}")
    blocks: list[TensorBlock] = []
    step = max(1, _PASS_POSITIONS // block) * block
    for at in range(begin, end, step):
        stop = min(at + step, end)
        # Few operations, because each takes microseconds: one for all layers, then one per block.
        passed = [torch.stack([memory[row, :, at:stop] for memory in alike]) for alike in _alike(rows)]
        for offset in range(0, stop - at, block):
            tensors = tuple(
                whole[:, :, offset : offset + block].clone(memory_format=torch.contiguous_format) for whole in passed
            )
            blocks.append(TensorBlock(tensors, sum(tensor.untyped_storage().nbytes() for tensor in tensors)))
    return blocks


def positions(blocks: Sequence[TensorBlock]) -> int:
    """Return the number of positions in the blocks, which all have one length."""
    return len(blocks) * blocks[0].tensors[0].shape[2]


def copy_in(rows: KVRows, row: int, blocks: Sequence[TensorBlock]) -> None:
    """Write the blocks to the first positions of a row that has room for them."""
    count = max(1, _PASS_POSITIONS // positions(blocks[:1]))
    begin = 0
    for at in range(0, len(blocks), count):
        passed = blocks[at : at + count]
        end = begin + positions(passed)
        for place, alike in enumerate(_alike(rows)):
            whole = torch.cat([block.tensors[place] for block in passed], dim=2)
            for memory, part in zip(alike, whole, strict=True):
                memory[row, :, begin:end] = part
        begin = end
    rows.lengths[row] = begin


def _alike(rows: KVRows) -> Iterator[list[torch.Tensor]]:
    """Yield the memories of keys and values, those of one shape together, always in the same order."""
    groups: dict[tuple[int, int], list[torch.Tensor]] = {}
    for memory in (*rows.keys, *rows.values):
        groups.setdefault((memory.shape[1], memory.shape[3]), []).append(memory)
    yield from groups.values()
