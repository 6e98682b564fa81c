"""The record of one request: the columns of its table, and the object that the load generator fills in.

`REQUEST_COLUMNS` is the schema of `requests.parquet`. The frames of the analysis and the shared columns of a schedule
follow from it. A new recorded field is a column here and an attribute of `RequestRecord` with the same name.

All stamps are nanoseconds of `CLOCK_MONOTONIC`, comparable between the processes of one machine. A value that does not
apply is null, never 0.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from itertools import pairwise

import pyarrow as pa

from muai_lab.request_status import STATUSES, RequestStatus
from muai_lab.visible import TOGETHER_S_PER_TOKEN

ERROR_TEXT_LIMIT = 300
SPLIT_TOLERANCE = 0.05

INTEGER, TEXT = pa.int64(), pa.string()
STAMP, DURATION, TOKENS = "ns of CLOCK_MONOTONIC", "ns", "tokens"


@dataclass(frozen=True, slots=True)
class RecordColumn:
    """One column of `requests.parquet`.

    unit: Unit of the numbers; None for texts and identifiers. required: True if the column has no nulls.
    """

    name: str
    type: pa.DataType
    meaning: str
    unit: str | None = None
    required: bool = False

    @property
    def is_stamp(self) -> bool:
        """True for a column of one stamp per row."""
        return self.unit == STAMP and self.type == INTEGER


REQUEST_COLUMNS = (
    RecordColumn("index", INTEGER, "row of the request in the schedule", required=True),
    RecordColumn("phase", TEXT, "phase in which it was due: warmup, measure or drain", required=True),
    RecordColumn("intended_ns", INTEGER, "time at which the schedule wants it sent; open loop only", STAMP),
    RecordColumn(
        "released_ns", INTEGER, "time at which its slot was free; closed loop, or a cap on the open loop", STAMP
    ),
    RecordColumn("sent_ns", INTEGER, "time just before the client wrote it", STAMP),
    RecordColumn("first_content_ns", INTEGER, "arrival of the first chunk with content", STAMP),
    RecordColumn("last_content_ns", INTEGER, "arrival of the last chunk with content", STAMP),
    RecordColumn("last_token_ns", INTEGER, "arrival of the last token, also of one that only a count revealed", STAMP),
    RecordColumn("stream_end_ns", INTEGER, "end of the answer, or of the attempt", STAMP),
    RecordColumn("status", TEXT, f"outcome: {', '.join(STATUSES)}", required=True),
    RecordColumn("http_status", pa.int32(), "status code of the answer"),
    RecordColumn("error", TEXT, "reason of a failure"),
    RecordColumn("finish_reason", TEXT, "reason for the end of the answer, as the server states it"),
    RecordColumn("prompt_tokens", INTEGER, "length of the prompt, as the server counts it", TOKENS),
    RecordColumn("output_tokens", INTEGER, "length of the answer, as the server counts it", TOKENS),
    RecordColumn("client_output_tokens", INTEGER, "length of the answer, as the client's tokenizer counts it", TOKENS),
    RecordColumn("decode_tokens", INTEGER, "tokens that arrived after the first chunk", TOKENS),
    RecordColumn("unseen_tokens", INTEGER, "tokens of `output_tokens` that no chunk carried", TOKENS),
    RecordColumn("read_together", INTEGER, "events merged into the chunk before them", "events", required=True),
    RecordColumn("note", TEXT, "an inference about the answer, or something in it that the client did not understand"),
    RecordColumn("cached_prompt_tokens", INTEGER, "tokens of the prompt that the server's prefix cache held", TOKENS),
    RecordColumn("server_queue_ns", INTEGER, "wait in the server's queue, as the server states it", DURATION),
    RecordColumn("server_prefill_ns", INTEGER, "time from there to the first token, as the server states it", DURATION),
    RecordColumn("asked_prompt_tokens", INTEGER, "length of the prompt by the tokenizer that drew it", TOKENS),
    RecordColumn("max_tokens", INTEGER, "limit of the answer's length", TOKENS),
    RecordColumn("session", INTEGER, "conversation that it belongs to"),
    RecordColumn("turn", INTEGER, "position in the conversation, from 0"),
    RecordColumn("prefix_group", INTEGER, "group of prompts with a common beginning"),
    RecordColumn("part", TEXT, "part of a mixed workload"),
    RecordColumn("chunk_t_ns", pa.list_(pa.int64()), "arrival of each chunk with content", STAMP),
    RecordColumn("chunk_tokens", pa.list_(pa.int32()), "tokens of each chunk; null if they are unknown", TOKENS),
)

REQUESTS_SCHEMA = pa.schema(
    [pa.field(column.name, column.type, nullable=not column.required) for column in REQUEST_COLUMNS]
)


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request as it happens: the generator and the target fill it in. `REQUEST_COLUMNS` explains the columns.

    The hot path writes it, so it has slots, and chunk times sit in machine-typed arrays (8 + 4 bytes per chunk instead
    of two boxed integers). Events that one read of the socket brought are one chunk: the client cannot tell their times
    apart.

    Attributes that are no column:
        tokens_known: False if the tokens of each chunk are unknown; `chunk_tokens` is then null.
        unseen_ns: Arrival of the count that revealed `unseen_tokens`.
        connect_ns: Duration of opening a connection; None if one was open.
        answer: Pieces of the answer's text, for the next turn of the session; None if no turn follows.
        texts: Text of each chunk, for a tokenizer that counts after the load; None if the server counts.
    """

    index: int
    _: KW_ONLY
    max_tokens: int
    intended_ns: int | None = None
    released_ns: int | None = None
    session: int | None = None
    turn: int | None = None
    prefix_group: int | None = None
    part: str | None = None
    asked_prompt_tokens: int | None = None
    connect_ns: int | None = None
    sent_ns: int | None = None
    stream_end_ns: int | None = None
    status: RequestStatus | None = None
    http_status: int | None = None
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    client_output_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    server_queue_ns: int | None = None
    server_prefill_ns: int | None = None
    chunk_t_ns: array[int] = field(default_factory=lambda: array("q"))
    chunk_tokens: array[int] = field(default_factory=lambda: array("i"))
    tokens_known: bool = True
    unseen_tokens: int | None = None
    unseen_ns: int | None = None
    read_together: int = 0
    note: str | None = None
    answer: list[str] | None = None
    texts: list[str] | None = None

    @property
    def due_ns(self) -> int:
        """Time at which the request was due: `intended_ns` in the open loop, `released_ns` in the closed loop.

        Raises:
            ValueError: The record has neither.
        """
        due = self.intended_ns if self.intended_ns is not None else self.released_ns
        if due is None:
            raise ValueError(f"request {self.index} has neither an intended nor a released time")
        return due

    @property
    def sendable_ns(self) -> int:
        """Time from which only the client itself delayed the request: it was due, and a slot was free."""
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
        """Arrival of the last chunk, or of the count that revealed tokens without a chunk."""
        return self.last_content_ns if self.unseen_ns is None else self.unseen_ns

    @property
    def decode_tokens(self) -> int | None:
        """Tokens that arrived in chunks after the first one; None if unknown.

        If the counts per chunk are unknown, the first chunk counts as one token, provided that any other split changes
        the result by at most `SPLIT_TOLERANCE`.
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

    @property
    def latencies_s(self) -> dict[str, float]:
        """TTFT, TPOT and E2E in seconds, as an SLO judges them; NaN if the client did not see one.

        TTFT and E2E count from the intended time, in a closed loop from `sent_ns`.
        """
        start = self.sent_ns if self.intended_ns is None else self.intended_ns
        first, last, tpot_s = self.first_content_ns, self.last_token_ns, self.tpot_s
        return {
            "ttft": math.nan if first is None or start is None else (first - start) / 1e9,
            "tpot": math.nan if tpot_s is None else tpot_s,
            "e2e": math.nan if last is None or start is None else (last - start) / 1e9,
        }

    def move_stamps(self, moved: Callable[[int], int]) -> None:
        """Convert every stamp to another clock, in nanoseconds."""
        for name in _STAMPS:
            if (at_ns := getattr(self, name)) is not None:
                setattr(self, name, moved(at_ns))
        self.chunk_t_ns = array("q", map(moved, self.chunk_t_ns))

    def fill_chunks(self, tokens: list[int] | None) -> None:
        """Set the tokens of each chunk, and merge the chunks that one read brought.

        Args:
            tokens: One count per chunk; None if unknown.
        """
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

    def end(self, status: RequestStatus, at_ns: int, error: str | None = None) -> None:
        """Close the record. The first call counts; a later one changes nothing."""
        if self.status is None:
            self.status = status
            self.stream_end_ns = at_ns
            self.error = error if error is None else _shortened(error)


_STAMPS = ("unseen_ns", *(one.name for one in REQUEST_COLUMNS if one.is_stamp and one.name in RequestRecord.__slots__))


def _shortened(text: str) -> str:
    text = " ".join(text.split()).encode("utf-8", "replace").decode()  # half of a surrogate pair has no UTF-8
    return text if len(text) <= ERROR_TEXT_LIMIT else text[: ERROR_TEXT_LIMIT - 1] + "…"
