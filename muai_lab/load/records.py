"""The records of a load as the table `requests.parquet`."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from muai_lab.request_record import REQUESTS_SCHEMA, RequestRecord
from muai_lab.window import Window


def records_table(records: Sequence[RequestRecord], window: Window) -> pa.Table:
    """Return the records as a table with `REQUESTS_SCHEMA`, one row per request, in order of `index`.

    Raises:
        ValueError: A record has not ended.
    """
    records = sorted(records, key=lambda record: record.index)
    unfinished = [record.index for record in records if record.status is None]
    if unfinished:
        raise ValueError(f"records without an end: {unfinished[:5]}")
    computed: dict[str, Any] = {
        "phase": [window.phase(record.due_ns) for record in records],
        "chunk_t_ns": _chunk_lists([record.chunk_t_ns for record in records], pa.int64()),
        "chunk_tokens": _chunk_lists(
            [record.chunk_tokens if record.tokens_known else None for record in records], pa.int32()
        ),
    }
    columns = [
        computed[field.name]
        if field.name in computed
        else pa.array([getattr(record, field.name) for record in records], type=field.type)
        for field in REQUESTS_SCHEMA
    ]
    return pa.table(columns, schema=REQUESTS_SCHEMA)


def _chunk_lists(chunks: Sequence[array[int] | None], value_type: pa.DataType) -> pa.Array:
    """Return a list column from per-record arrays, without boxing the values."""
    lengths = np.array([0 if chunk is None else len(chunk) for chunk in chunks], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = np.frombuffer(b"".join(chunk.tobytes() for chunk in chunks if chunk), dtype=value_type.to_pandas_dtype())
    missing = pa.array([chunk is None for chunk in chunks], type=pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=value_type), mask=missing)
