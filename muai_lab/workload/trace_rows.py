"""Rows of traces: the Azure LLM inference dataset, BurstGPT, Mooncake and their relatives.

Sources: github.com/Azure/AzurePublicDataset (2023 and 2024); github.com/HPMLL/BurstGPT (Wang et al., 2024);
github.com/kvcache-ai/Mooncake (Qin et al., FAST 2025), whose format aiperf and SGLang extend.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from muai_lab.errors import RunError
from muai_lab.settings.workload import BurstGptWorkload, MooncakeWorkload, TraceWorkload
from muai_lab.workload.fields import OUTPUT_LIMITS, OUTPUT_TOKENS, PROMPT_TOKENS, TIME, Row, length, name_unused
from muai_lab.workload.reading import FileReading, exact, number, shown
from muai_lab.workload.request_fields import request_fields
from muai_lab.workload.row_files import format_of, rows_of
from muai_lab.workload.timestamps import PER_SECOND, Timestamps
from muai_lab.workload.trace import Trace, TraceRow
from muai_lab.workload.written import USUAL, Form, RowReader

_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURSTGPT = ("Timestamp", "Request tokens", "Response tokens")
_MODEL, _LOG = "Model", "Log Type"
_SESSIONS = ("session_id", "conversation_id")


def read_trace(reading: FileReading, workload: TraceWorkload, clock: Timestamps) -> Trace:
    """The requests of the file, from `workload.skip` on and at most `workload.limit`; nothing beyond it is read.

    Raises RunError when nothing is left, when a column is missing, and for the first bad row unless
    `workload.on_error` is skip.
    """
    trace = Trace(reading)
    chosen = _Chosen(workload)
    rows = _mooncake_rows(reading, workload, clock) if isinstance(workload, MooncakeWorkload) else None
    taken = 0
    for line, row in rows or _table_rows(reading, workload, clock, chosen):
        taken += 1
        if taken <= workload.skip:
            continue
        try:
            trace.add(row)
        except ValueError as error:
            reading.bad(line, str(error))
        if len(trace) == workload.limit:
            break
    if len(trace) == 0:
        chosen.check(reading)
        raise reading.nothing("request to replay")
    return trace


class _Chosen:
    """The requests that `workload.model` and `workload.log_type` choose, and the values that the file has instead."""

    def __init__(self, workload: TraceWorkload) -> None:
        wanted = {}
        if isinstance(workload, BurstGptWorkload):
            wanted = {_MODEL: workload.model, _LOG: workload.log_type}
        self.wanted = {column: value for column, value in wanted.items() if value is not None}
        self._seen: dict[str, set[str]] = {column: set() for column in self.wanted}

    def takes(self, row: Row) -> bool:
        """True if the row has the wanted values."""
        values = {column: str(row.take(column)) for column in self.wanted}
        for column, value in values.items():
            self._seen[column].add(value)
        return values == self.wanted

    def check(self, reading: FileReading) -> None:
        """Raises RunError if no row has one of the wanted values."""
        for column, value in self.wanted.items():
            if self._seen[column] and value not in self._seen[column]:
                there = ", ".join(sorted(self._seen[column]))
                raise RunError(f"{reading.path}: no {column} is {value!r}; there are {there}")


def _table_rows(
    reading: FileReading, workload: TraceWorkload, clock: Timestamps, chosen: _Chosen
) -> Iterator[tuple[int, TraceRow]]:
    """Rows with a time and two lengths."""
    columns = _BURSTGPT if isinstance(workload, BurstGptWorkload) else _AZURE
    texts = format_of(reading) == "csv"
    checked = False
    for line, fields in rows_of(reading):
        row = Row(fields, texts=texts)
        if not checked:
            _check_columns(reading, row, columns, chosen)
            checked = True
        if not chosen.takes(row):
            continue
        try:
            time_s = _time_s(row, clock)
            if time_s is None:
                raise ValueError(f"{columns[0]} is missing")
            found = TraceRow(
                time_s,
                _needed(length(row, PROMPT_TOKENS), columns[1]),
                _needed(length(row, OUTPUT_TOKENS), columns[2]),
                extra=request_fields([row], workload.api) if workload.request_fields == "send" else None,
            )
        except ValueError as error:
            reading.bad(line, str(error))
            continue
        name_unused(reading, row)
        yield line, found


def _check_columns(reading: FileReading, row: Row, columns: tuple[str, ...], chosen: _Chosen) -> None:
    needed = zip(columns, (TIME, PROMPT_TOKENS, OUTPUT_TOKENS), strict=True)
    missing = [column for column, names in needed if not row.known_as(names)]
    missing += [column for column in chosen.wanted if not row.has_field(column)]
    if missing:
        raise reading.wrong_columns(missing, row.names())


def _mooncake_rows(
    reading: FileReading, workload: MooncakeWorkload, clock: Timestamps
) -> Iterator[tuple[int, TraceRow]]:
    parser = _Mooncake(reading, workload, clock)
    texts = format_of(reading) == "csv"
    for line, fields in rows_of(reading):
        row = Row(fields, texts=texts)
        try:
            found = parser.row(row)
        except ValueError as error:
            reading.bad(line, str(error))
            continue
        name_unused(reading, row)
        if found is not None:
            yield line, found


class _Mooncake:
    """Reads rows with `input_length` and `hash_ids`, or with a text (`text_input`, `messages`, `payload`)."""

    def __init__(self, reading: FileReading, workload: MooncakeWorkload, clock: Timestamps) -> None:
        self._reading = reading
        self._workload = workload
        self._clock = clock
        self._send = workload.request_fields == "send"
        self._reader = RowReader(reading, Form(workload.api, self._send))

    def row(self, row: Row) -> TraceRow | None:
        """The request of a row; None if it asks nothing. Raises ValueError if the row makes no sense."""
        session = next((str(exact(row.take(name), name)) for name in _SESSIONS if name in row), None)
        time_s, pause_s = _time_s(row, self._clock), self._pause_s(row)
        prompt = length(row, PROMPT_TOKENS)
        if prompt is None:
            return self._written(row, time_s, session, pause_s)
        output = _needed(length(row, OUTPUT_TOKENS + OUTPUT_LIMITS), "output_length")
        extra = request_fields([row], self._workload.api) if self._send else None
        blocks = self._blocks(row, prompt)
        return TraceRow(time_s, prompt, output, blocks, session, pause_s, extra=extra)

    def _written(self, row: Row, time_s: float | None, session: str | None, pause_s: float | None) -> TraceRow | None:
        if not any(name in row for name in USUAL):
            raise ValueError("input_length is missing, and so is a text_input or messages")
        whole = "messages" in row or "payload" in row
        mode = row.take("message_mode")
        written = self._reader.read(row)
        if written is None:
            return None
        if any(turn.output_tokens is None and turn.answer is None for turn in written):
            raise ValueError("output_length is missing")
        # A text is new in its session; messages hold the session from its beginning unless they are deltas.
        delta = mode == "delta"
        return TraceRow(time_s, 0, 1, None, session, pause_s, written, new_only=delta or not whole, follows=delta)

    def _pause_s(self, row: Row) -> float | None:
        delay = row.take("delay")
        if delay is None:
            return None
        if (pause := number(delay, "delay")) < 0:
            raise ValueError(f"delay is {shown(delay)}, expected a time from 0")
        return pause / PER_SECOND[self._workload.time_unit or "ms"]

    def _blocks(self, row: Row, prompt: int) -> list[int]:
        ids: Any = row.take("hash_ids")
        ids = [] if ids is None else ids
        if not isinstance(ids, list) or not all(type(item) is int and abs(item) < 1 << 63 for item in ids):
            raise ValueError(f"hash_ids is {shown(ids)}, expected a list of whole numbers")
        block_tokens = self._workload.block_tokens
        if len(ids) * block_tokens < prompt and ids:
            raise ValueError(
                f"{len(ids)} hash_ids of {block_tokens} tokens cannot make an input_length of {prompt}; see "
                "workload.block_tokens"
            )
        needed = -(-prompt // block_tokens)
        if len(ids) > needed:
            self._reading.remark(
                f"with more hash_ids than blocks of {block_tokens} tokens in input_length: the first are used, see "
                "workload.block_tokens"
            )
        return ids[:needed]


def _time_s(row: Row, clock: Timestamps) -> float | None:
    for name in row.known_as(TIME):
        if (value := row.take(name)) is not None:
            return clock.seconds(value, row.named(name))
    return None


def _needed(count: int | None, name: str) -> int:
    if count is None:
        raise ValueError(f"{name} is missing")
    return count
