"""The streamed chunks of all requests as flat arrays.

A million requests have tens of millions of chunks, too many for Python lists in a frame. They are read from the Parquet
file as flat arrays, and only when needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Chunks:
    """One entry per content chunk, ordered by request, then time.

    Attributes:
        row: Position of the request in the records. [chunks]
        t_ns: Arrival, monotonic nanoseconds. [chunks]
        tokens: Tokens of the chunk. If the server did not count them, an equal part of the request's output tokens (NaN
            if those are unknown too). [chunks]
        counted: True if the server counted them. [chunks]
    """

    row: NDArray[np.int64]
    t_ns: NDArray[np.int64]
    tokens: NDArray[np.float64]
    counted: NDArray[np.bool_]


EMPTY_CHUNKS = Chunks(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64), np.empty(0, np.bool_))


def read_chunks(path: Path, output_tokens: NDArray[np.float64]) -> Chunks:
    """Read the chunk columns of a records file.

    Args:
        path: The file `requests.parquet`.
        output_tokens: Tokens of each request (NaN if unknown), for rows whose chunks carry no counts. [requests]
    """
    present = set(pq.read_schema(path).names)
    if "chunk_t_ns" not in present:
        return EMPTY_CHUNKS
    table = pq.read_table(path, columns=[name for name in ("chunk_t_ns", "chunk_tokens") if name in present])
    times = _lists(table["chunk_t_ns"])
    row = _parents(times)
    t_ns = np.asarray(pc.list_flatten(times).cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)
    per_row = np.bincount(row, minlength=len(times))
    with np.errstate(divide="ignore", invalid="ignore"):
        tokens = (output_tokens / per_row)[row]
    counted = np.zeros(row.size, dtype=np.bool_)
    if "chunk_tokens" in present:
        counts = _lists(table["chunk_tokens"])
        count_row = _parents(counts)
        count = pc.list_flatten(counts).cast(pa.float64()).to_numpy(zero_copy_only=False)
        usable = (np.bincount(count_row, minlength=len(counts)) == per_row) & (per_row > 0)
        counted = usable[row]
        tokens[counted] = count[usable[count_row]]
    return Chunks(row, t_ns, tokens, counted)


def _lists(column: pa.ChunkedArray) -> pa.Array:
    lists = column.combine_chunks()
    if pa.types.is_null(lists.type):  # no request had any
        return pa.array([None] * len(lists), type=pa.list_(pa.int64()))
    return lists


def _parents(lists: pa.Array) -> NDArray[np.int64]:
    return np.asarray(pc.list_parent_indices(lists).to_numpy(zero_copy_only=False), dtype=np.int64)
