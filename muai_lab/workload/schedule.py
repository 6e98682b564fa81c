"""The schedule: all requests of a load with their times. Frozen before the load, saved with the run, replayable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from muai_lab.request_record import REQUESTS_SCHEMA
from muai_lab.workload.parquet import read_parquet, write_parquet


def _recorded(name: str, *, nullable: bool = True) -> pa.Field:
    """Return a column that the request's record has too, with the same type."""
    return pa.field(name, REQUESTS_SCHEMA.field(name).type, nullable=nullable)


SCHEDULE_SCHEMA = pa.schema(
    [
        _recorded("index", nullable=False),
        pa.field("intended_s", pa.float64()),
        pa.field("prompt", pa.large_string()),
        pa.field("prompt_ids", pa.list_(pa.int32())),
        _recorded("prompt_tokens", nullable=False),
        _recorded("max_tokens", nullable=False),
        _recorded("session"),
        _recorded("turn"),
        _recorded("prefix_group"),
        pa.field("seed", pa.int64()),
        pa.field("messages", pa.large_string()),
        pa.field("think_s", pa.float64()),
        _recorded("part"),
        pa.field("extra", pa.large_string()),
    ]
)

Message = Mapping[str, Any]
"""One message of a conversation: `role`, `content`, and the other fields of the chat API, such as `tool_calls`."""

_LATER_COLUMNS = frozenset({"extra"})
"""Columns that schedules of earlier versions lack. They are part of the hash only if they have a value."""

_NOTES = b"muai_lab.notes"


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """One row of a schedule.

    Exactly one of prompt, prompt_ids and messages has a value.

    Attributes:
        index: Number of the request.
        intended_s: Seconds from the start of the load; None in the closed loop and for a later turn of a session, which
            is due `think_s` seconds after the end of the answer before it.
        prompt: A text; one message of the user.
        prompt_ids: Token ids, int32 `[prompt_tokens]`.
        prompt_tokens: Length of the whole prompt, with earlier answers at their full length.
        max_tokens: Length of the answer.
        session, turn, think_s: Conversation, place in it from 0, seconds from the answer before.
        prefix_group: Requests of a group begin alike.
        seed: Seed of the sampling.
        messages: JSON, a list of `{"role", "content"}`.
        part: Name of its part of a mixed workload.
        extra: Further fields of the request's body (JSON, an object), such as `tools` or `stop`; they replace the
            target's own fields of the same name.
        earlier: The messages of the session before this turn, with the server's own answers. No column: the load
            generator fills it in.
    """

    index: int
    intended_s: float | None
    prompt: str | None
    prompt_ids: npt.NDArray[np.int32] | None
    prompt_tokens: int
    max_tokens: int
    session: int | None = None
    turn: int | None = None
    prefix_group: int | None = None
    seed: int | None = None
    messages: str | None = None
    think_s: float | None = None
    part: str | None = None
    extra: str | None = None
    earlier: tuple[Message, ...] = ()

    def conversation(self) -> list[Message]:
        """Return all messages so far, with this turn."""
        if self.messages is not None:
            return [*self.earlier, *json.loads(self.messages)]
        return [*self.earlier, {"role": "user", "content": self.prompt or ""}]

    def text(self) -> str:
        """Return the prompt as plain text; the messages of a conversation are joined by line ends."""
        if self.messages is None and not self.earlier:
            return self.prompt or ""
        return conversation_text(self.conversation())


def conversation_text(messages: Iterable[Message]) -> str:
    """Return the texts of a conversation, joined by line ends."""
    return "\n".join(message_text(message) for message in messages)


def message_text(message: Message) -> str:
    """Return the text of a message: its content, or the text parts of its content; empty if it has none."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


@dataclass(frozen=True)
class Schedule:
    """All requests of one load, in order of sending; `table` has `SCHEDULE_SCHEMA`.

    The turns of a session are adjacent and in order. Code that divides a schedule must keep them together: a later turn
    needs the answers to those before it. notes: facts about the drawing that a reader of the results must know; without
    content.
    """

    table: pa.Table
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[ScheduledRequest]:
        return map(self.request, range(len(self)))

    @property
    def open_loop(self) -> bool:
        """True if requests have times of their own; otherwise they are sent as slots become free."""
        return len(self) > 0 and self.table["intended_s"][0].is_valid

    @cached_property
    def starts(self) -> list[int]:
        """The rows that wait for no answer: single requests, and the first turns of sessions."""
        rows: list[int] = self._starts.tolist()
        return rows

    def later_turns(self, row: int) -> int:
        """Return the number of turns that follow the start at `row` in its session; 0 for a single request."""
        return int(self._later_turns[row])

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        turns = self._columns["turn"].fill_null(0).to_numpy(zero_copy_only=False)
        return np.flatnonzero(turns == 0)

    @cached_property
    def _later_turns(self) -> npt.NDArray[np.int64]:
        counts = np.zeros(len(self), dtype=np.int64)
        counts[self._starts] = np.diff(self._starts, append=len(self)) - 1
        return counts

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the content: equal schedules have equal hashes, independent of their origin and storage."""
        digest = hashlib.sha256()
        for field in SCHEDULE_SCHEMA:
            column = self._columns[field.name]
            if field.name in _LATER_COLUMNS and column.null_count == len(column):
                continue
            digest.update(f"{field.name}:{field.type}:{len(self)};".encode())
            _digest_array(digest, column)
        return digest.hexdigest()

    def request(self, row: int) -> ScheduledRequest:
        """Return one row; cheap enough for a call when the request is due."""
        values: dict[str, Any] = self._absent | {name: value_at(row) for name, value_at in self._readers}
        return ScheduledRequest(**values, prompt_ids=self._ids_at(row))

    def write(self, path: Path) -> None:
        """Save as Parquet, with the notes as metadata; raises RunError if the file cannot be written."""
        notes = json.dumps(self.notes, ensure_ascii=False).encode("utf-8", "replace")
        write_parquet(self.table.replace_schema_metadata({_NOTES: notes}), path)

    @classmethod
    def read(cls, path: Path) -> Schedule:
        """Load a saved schedule; raises RunError if it is missing, damaged or of another version."""
        table = read_parquet(path, SCHEDULE_SCHEMA, "schedule", later_columns=_LATER_COLUMNS)
        return cls(table.replace_schema_metadata(None), _notes_of(table.schema.metadata))

    @classmethod
    def of(cls, requests: list[ScheduledRequest], *, notes: tuple[str, ...] = ()) -> Schedule:
        """Return a schedule of rows."""
        columns = [
            pa.array([getattr(request, field.name) for request in requests], type=field.type)
            for field in SCHEDULE_SCHEMA
        ]
        return cls(pa.table(columns, schema=SCHEDULE_SCHEMA), notes)

    @cached_property
    def _columns(self) -> dict[str, pa.Array]:
        table = self.table.combine_chunks()
        columns = {}
        for name in SCHEDULE_SCHEMA.names:
            chunks = table[name].chunks
            columns[name] = chunks[0] if chunks else pa.array([], type=SCHEDULE_SCHEMA.field(name).type)
        return columns

    @cached_property
    def _readers(self) -> list[tuple[str, Callable[[int], Any]]]:
        """Readers of each column except the ids'; the fields of a request have the names of the columns."""
        return [
            (name, _reader(column))
            for name, column in self._columns.items()
            if name not in self._absent and name != "prompt_ids"
        ]

    @cached_property
    def _absent(self) -> dict[str, None]:
        """The columns without any value, except the ids': most of them in most loads."""
        columns = self._columns.items()
        return {name: None for name, column in columns if column.null_count == len(column) and name != "prompt_ids"}

    def _ids_at(self, row: int) -> npt.NDArray[np.int32] | None:
        return self._id_values[self._id_offsets[row] : self._id_offsets[row + 1]] if self._has_ids(row) else None

    @cached_property
    def _has_ids(self) -> Callable[[int], bool]:
        valid: Callable[[int], bool] = self._columns["prompt_ids"].is_valid().to_numpy(zero_copy_only=False).item
        return valid

    @cached_property
    def _id_offsets(self) -> list[int]:
        offsets: list[int] = self._columns["prompt_ids"].offsets.to_pylist()
        return offsets

    @cached_property
    def _id_values(self) -> npt.NDArray[np.int32]:
        values: npt.NDArray[np.int32] = self._columns["prompt_ids"].values.to_numpy(zero_copy_only=False)
        return values


def _reader(column: pa.Array) -> Callable[[int], Any]:
    """Return the reader of a row as a Python value: most columns of most loads are numbers without gaps."""
    if column.null_count == 0 and pa.types.is_primitive(column.type):
        item: Callable[[int], Any] = column.to_numpy().item
        return item
    return lambda row: column[row].as_py()


def _notes_of(metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    try:
        notes = json.loads((metadata or {}).get(_NOTES, b"[]"))
    except ValueError:
        return ()
    return tuple(str(note) for note in notes) if isinstance(notes, list) else ()


def _digest_array(digest: hashlib._Hash, column: pa.Array) -> None:
    """Feed a column into the digest by value: which rows are null, then lengths, then bytes."""
    digest.update(np.packbits(column.is_null().to_numpy(zero_copy_only=False)).tobytes())
    valid = column.drop_null()
    if pa.types.is_list(column.type):
        digest.update(pc.list_value_length(valid).to_numpy(zero_copy_only=False).tobytes())
        _digest_array(digest, valid.flatten())
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        digest.update(pc.binary_length(valid).to_numpy(zero_copy_only=False).tobytes())
        for text in valid:
            digest.update(text.as_buffer())
    else:
        digest.update(valid.to_numpy(zero_copy_only=False).tobytes())
