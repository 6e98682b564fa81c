"""What was seen of each request, and its table `requests.parquet`.

All times are `CLOCK_MONOTONIC` nanoseconds, comparable between the processes of one machine. A value that does not
apply is null, never 0.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

Status = Literal["ok", "error", "rejected", "cancelled", "timeout"]
Phase = Literal["warmup", "measure", "drain"]

ERROR_TEXT_LIMIT = 300

REQUESTS_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("phase", pa.string(), nullable=False),
        pa.field("intended_ns", pa.int64()),
        pa.field("released_ns", pa.int64()),
        pa.field("sent_ns", pa.int64()),
        pa.field("first_content_ns", pa.int64()),
        pa.field("last_token_ns", pa.int64()),
        pa.field("stream_end_ns", pa.int64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("http_status", pa.int32()),
        pa.field("error", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int64()),
        pa.field("output_tokens", pa.int64()),
        pa.field("client_output_tokens", pa.int64()),
        pa.field("cached_prompt_tokens", pa.int64()),
        pa.field("server_queue_ns", pa.int64()),
        pa.field("server_prefill_ns", pa.int64()),
        pa.field("max_tokens", pa.int64()),
        pa.field("session", pa.int64()),
        pa.field("turn", pa.int64()),
        pa.field("prefix_group", pa.int64()),
        pa.field("part", pa.string()),
        pa.field("chunk_t_ns", pa.list_(pa.int64())),
        pa.field("chunk_tokens", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True, slots=True)
class Window:
    """When what was measured; monotonic nanoseconds.

    Requests due in `[measure_start_ns, measure_end_ns)` count. drain_end_ns: the last request ended or was given up.
    """

    load_start_ns: int
    measure_start_ns: int
    measure_end_ns: int
    drain_end_ns: int

    def phase(self, due_ns: int) -> Phase:
        """The phase in which a request is due."""
        if due_ns < self.measure_start_ns:
            return "warmup"
        return "measure" if due_ns < self.measure_end_ns else "drain"

    @property
    def measured_s(self) -> float:
        """Length of the measurement window in seconds."""
        return (self.measure_end_ns - self.measure_start_ns) / 1e9


class RequestRecord:
    """One request as it happens: the generator and the target fill it in.

    Written on the hot path, so it is a mutable object with slots, and chunk times sit in machine-typed arrays
    (8 + 4 bytes per chunk instead of two boxed integers).

    status is None while the request is under way. chunk_tokens and chunk_t_ns hold the content chunks only.
    tokens_known: False when the server does not say how many tokens a chunk carries; `chunk_tokens` is then null.
    server_queue_ns, server_prefill_ns: how long the request waited in the server, and from there to its first token, as
    the server says itself; None where it does not.
    answer: the pieces of the answer's text, for the next turn of its session; None where nobody will need it.
    """

    __slots__ = (
        "answer",
        "cached_prompt_tokens",
        "chunk_t_ns",
        "chunk_tokens",
        "client_output_tokens",
        "error",
        "finish_reason",
        "http_status",
        "index",
        "intended_ns",
        "max_tokens",
        "output_tokens",
        "part",
        "prefix_group",
        "prompt_tokens",
        "released_ns",
        "sent_ns",
        "server_prefill_ns",
        "server_queue_ns",
        "session",
        "status",
        "stream_end_ns",
        "tokens_known",
        "turn",
    )

    def __init__(
        self,
        index: int,
        *,
        max_tokens: int,
        intended_ns: int | None = None,
        released_ns: int | None = None,
        session: int | None = None,
        turn: int | None = None,
        prefix_group: int | None = None,
        part: str | None = None,
    ) -> None:
        self.index = index
        self.intended_ns = intended_ns
        self.released_ns = released_ns
        self.max_tokens = max_tokens
        self.session = session
        self.turn = turn
        self.prefix_group = prefix_group
        self.part = part
        self.sent_ns: int | None = None
        self.stream_end_ns: int | None = None
        self.status: Status | None = None
        self.http_status: int | None = None
        self.error: str | None = None
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.client_output_tokens: int | None = None
        self.cached_prompt_tokens: int | None = None
        self.server_queue_ns: int | None = None
        self.server_prefill_ns: int | None = None
        self.chunk_t_ns = array("q")
        self.chunk_tokens = array("i")
        self.tokens_known = True
        self.answer: list[str] | None = None

    @property
    def due_ns(self) -> int:
        """When the request was due: `intended_ns` in the open loop, `released_ns` in the closed loop."""
        due = self.intended_ns if self.intended_ns is not None else self.released_ns
        if due is None:
            raise ValueError(f"request {self.index} has neither an intended nor a released time")
        return due

    @property
    def first_content_ns(self) -> int | None:
        """Arrival of the first chunk with content."""
        return self.chunk_t_ns[0] if self.chunk_t_ns else None

    @property
    def last_token_ns(self) -> int | None:
        """Arrival of the last chunk with content."""
        return self.chunk_t_ns[-1] if self.chunk_t_ns else None

    def end(self, status: Status, at_ns: int, error: str | None = None) -> None:
        """Close the record; the first ending counts, a later one changes nothing."""
        if self.status is None:
            self.status = status
            self.stream_end_ns = at_ns
            self.error = error if error is None else _shortened(error)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= ERROR_TEXT_LIMIT else text[: ERROR_TEXT_LIMIT - 1] + "…"


def records_table(records: Sequence[RequestRecord], window: Window) -> pa.Table:
    """The records as a table with `REQUESTS_SCHEMA`, one row per request, in order of `index`.

    Raises ValueError for a record that has not ended.
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
    """A list column from per-record arrays, without boxing the values."""
    lengths = np.array([0 if chunk is None else len(chunk) for chunk in chunks], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = np.frombuffer(b"".join(chunk.tobytes() for chunk in chunks if chunk), dtype=value_type.to_pandas_dtype())
    missing = pa.array([chunk is None for chunk in chunks], type=pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=value_type), mask=missing)
