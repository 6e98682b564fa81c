"""What was seen of each request, and its table `requests.parquet`.

All times are `CLOCK_MONOTONIC` nanoseconds, comparable between the processes of one machine. A value that does not
apply is null, never 0.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from muai_lab.load.foreign_values import printable
from muai_lab.visible import TOGETHER_S_PER_TOKEN
from muai_lab.window import Window

Status = Literal["ok", "error", "rejected", "cancelled", "timeout"]

ERROR_TEXT_LIMIT = 300
SPLIT_TOLERANCE = 0.05

REQUESTS_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("phase", pa.string(), nullable=False),
        pa.field("intended_ns", pa.int64()),
        pa.field("released_ns", pa.int64()),
        pa.field("sent_ns", pa.int64()),
        pa.field("first_content_ns", pa.int64()),
        pa.field("last_content_ns", pa.int64()),
        pa.field("last_token_ns", pa.int64()),
        pa.field("stream_end_ns", pa.int64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("http_status", pa.int32()),
        pa.field("error", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int64()),
        pa.field("output_tokens", pa.int64()),
        pa.field("client_output_tokens", pa.int64()),
        pa.field("decode_tokens", pa.int64()),
        pa.field("unseen_tokens", pa.int64()),
        pa.field("read_together", pa.int64(), nullable=False),
        pa.field("note", pa.string()),
        pa.field("cached_prompt_tokens", pa.int64()),
        pa.field("server_queue_ns", pa.int64()),
        pa.field("server_prefill_ns", pa.int64()),
        pa.field("asked_prompt_tokens", pa.int64()),
        pa.field("max_tokens", pa.int64()),
        pa.field("session", pa.int64()),
        pa.field("turn", pa.int64()),
        pa.field("prefix_group", pa.int64()),
        pa.field("part", pa.string()),
        pa.field("chunk_t_ns", pa.list_(pa.int64())),
        pa.field("chunk_tokens", pa.list_(pa.int32())),
    ]
)


class RequestRecord:
    """One request as it happens: the generator and the target fill it in.

    Written on the hot path, so it is a mutable object with slots, and chunk times sit in machine-typed arrays
    (8 + 4 bytes per chunk instead of two boxed integers).

    status is None while the request is under way. chunk_tokens and chunk_t_ns hold the content chunks only.
    Events that one read of the socket brought are one chunk: the client cannot tell their times apart. read_together:
    events that were merged into the chunk before them for that reason.
    tokens_known: False if it is unknown how many tokens a chunk carries; `chunk_tokens` is then null.
    unseen_tokens, unseen_ns: tokens of `output_tokens` that no chunk carried, and when a count revealed them.
    note: an inference, or something in the answer that the client did not understand.
    asked_prompt_tokens: length of the prompt by the tokenizer that drew it; `prompt_tokens` is the server's count.
    server_queue_ns, server_prefill_ns: how long the request waited in the server, and from there to its first token, as
    the server says itself; None where it does not.
    connect_ns: how long a new connection took, None if one was there.
    answer: the pieces of the answer's text, for the next turn of its session; None where nobody will need it.
    texts: the text of each chunk, for a tokenizer that counts after the load; None if the server counts.
    """

    __slots__ = (
        "answer",
        "asked_prompt_tokens",
        "cached_prompt_tokens",
        "chunk_t_ns",
        "chunk_tokens",
        "client_output_tokens",
        "connect_ns",
        "error",
        "finish_reason",
        "http_status",
        "index",
        "intended_ns",
        "max_tokens",
        "note",
        "output_tokens",
        "part",
        "prefix_group",
        "prompt_tokens",
        "read_together",
        "released_ns",
        "sent_ns",
        "server_prefill_ns",
        "server_queue_ns",
        "session",
        "status",
        "stream_end_ns",
        "texts",
        "tokens_known",
        "turn",
        "unseen_ns",
        "unseen_tokens",
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
        asked_prompt_tokens: int | None = None,
    ) -> None:
        self.index = index
        self.intended_ns = intended_ns
        self.released_ns = released_ns
        self.max_tokens = max_tokens
        self.session = session
        self.turn = turn
        self.prefix_group = prefix_group
        self.part = part
        self.asked_prompt_tokens = asked_prompt_tokens
        self.connect_ns: int | None = None
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
        self.unseen_tokens: int | None = None
        self.unseen_ns: int | None = None
        self.read_together = 0
        self.note: str | None = None
        self.answer: list[str] | None = None
        self.texts: list[str] | None = None

    @property
    def due_ns(self) -> int:
        """When the request was due: `intended_ns` in the open loop, `released_ns` in the closed loop."""
        due = self.intended_ns if self.intended_ns is not None else self.released_ns
        if due is None:
            raise ValueError(f"request {self.index} has neither an intended nor a released time")
        return due

    @property
    def sendable_ns(self) -> int:
        """When nothing but the client's own delays kept the request from being sent: due, and a place was free."""
        return self.due_ns if self.released_ns is None else max(self.due_ns, self.released_ns)

    @property
    def first_content_ns(self) -> int | None:
        """Arrival of the first chunk with content."""
        return self.chunk_t_ns[0] if self.chunk_t_ns else None

    @property
    def last_content_ns(self) -> int | None:
        """Arrival of the last chunk with content."""
        return self.chunk_t_ns[-1] if self.chunk_t_ns else None

    @property
    def last_token_ns(self) -> int | None:
        """Arrival of the last token: of the last chunk, or of the count that revealed tokens without a chunk."""
        return self.last_content_ns if self.unseen_ns is None else self.unseen_ns

    @property
    def decode_tokens(self) -> int | None:
        """Tokens that arrived in chunks after the first one; None if unknown.

        If the counts per chunk are unknown, the first chunk is taken to carry one token, as long as any other split
        would change the result by at most `SPLIT_TOLERANCE`.
        """
        chunks = len(self.chunk_t_ns)
        if self.tokens_known:
            return sum(self.chunk_tokens[1:]) if chunks else None
        total = self.total_tokens
        if total is None or chunks < 2 or not chunks <= total <= 1 + (chunks - 1) * (1 + SPLIT_TOLERANCE):
            return None
        return total - 1

    @property
    def total_tokens(self) -> int | None:
        """Output tokens by the server's count, else by the client's; None if neither has one."""
        return self.output_tokens if self.output_tokens is not None else self.client_output_tokens

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first chunk, as `muai_lab.analysis.metrics.tpot` for one record."""
        first, last, tokens = self.first_content_ns, self.last_content_ns, self.decode_tokens
        if first is None or last is None or not tokens:
            return None
        per_token = (last - first) / 1e9 / tokens
        return per_token if per_token > TOGETHER_S_PER_TOKEN else None

    def fill_chunks(self, tokens: list[int] | None) -> None:
        """Set the tokens of each chunk (None if unknown), and merge the chunks that one read brought."""
        times = self.chunk_t_ns
        events = len(times)
        if events > 1 and times[0] == times[-1]:  # one read brought all of them, the usual case of a fast answer
            tokens = tokens if tokens is None else [sum(tokens)]
            self.texts = self.texts if self.texts is None else ["".join(self.texts)]
            self.chunk_t_ns, self.read_together = times[:1], events - 1
        elif len(set(times)) < events:
            starts = [i for i in range(events) if i == 0 or times[i] != times[i - 1]]
            if tokens is not None:
                tokens = [sum(tokens[i:j]) for i, j in pairwise([*starts, events])]
            if self.texts is not None:
                self.texts = ["".join(self.texts[i:j]) for i, j in pairwise([*starts, events])]
            self.chunk_t_ns = array("q", [times[i] for i in starts])
            self.read_together = events - len(starts)
        self.tokens_known = tokens is not None
        self.chunk_tokens = array("i", tokens or ())

    def end(self, status: Status, at_ns: int, error: str | None = None) -> None:
        """Close the record; the first ending counts, a later one changes nothing."""
        if self.status is None:
            self.status = status
            self.stream_end_ns = at_ns
            self.error = error if error is None else _shortened(error)


def _shortened(text: str) -> str:
    text = printable(" ".join(text.split()))
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
