"""Rows of traces: a time, and the lengths of prompt and answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from muai_lab.errors import RunError
from muai_lab.settings.workload import TraceWorkload
from muai_lab.workload.fields import OUTPUT_TOKENS, PROMPT_TOKENS, TIME, Row, length, name_unused
from muai_lab.workload.reading import FileReading
from muai_lab.workload.request_fields import request_fields
from muai_lab.workload.row_files import format_of, rows_of
from muai_lab.workload.timestamps import Timestamps
from muai_lab.workload.trace import Trace, TraceRow

NumberedTraceRow = tuple[int, TraceRow]
"""Line (of Parquet: row), from 1, and its request."""


def read_trace(reading: FileReading, workload: TraceWorkload, rows: Iterable[NumberedTraceRow]) -> Trace:
    """Return the requests of the rows, from `workload.skip` on and at most `workload.limit`; no row beyond is read.

    Raises:
        RunError: No request is left, a column is missing, or a row is bad (unless `workload.on_error` is skip).
    """
    trace = Trace(reading)
    for number, (line, row) in enumerate(rows):
        if number < workload.skip:
            continue
        try:
            trace.add(row)
        except ValueError as error:
            reading.bad(line, str(error))
        if len(trace) == workload.limit:
            break
    if len(trace) == 0:
        raise reading.nothing("request to replay")
    return trace


class ChosenRows:
    """The rows that have certain values, and a record of the values that the file has instead."""

    def __init__(self, wanted: Mapping[str, str | None]) -> None:
        """wanted: values by column; None accepts every value."""
        self.wanted = {column: value for column, value in wanted.items() if value is not None}
        self._seen: dict[str, set[str]] = {column: set() for column in self.wanted}

    def takes(self, row: Row) -> bool:
        """True if the row has the wanted values."""
        values = {column: str(row.take(column)) for column in self.wanted}
        for column, value in values.items():
            self._seen[column].add(value)
        return values == self.wanted

    def check(self, reading: FileReading) -> None:
        """Raise RunError if no row of the file had one of the wanted values."""
        for column, value in self.wanted.items():
            if self._seen[column] and value not in self._seen[column]:
                there = ", ".join(sorted(self._seen[column]))
                raise RunError(f"{reading.path}: no {column} is {value!r}; there are {there}")


def table_rows(
    reading: FileReading,
    workload: TraceWorkload,
    clock: Timestamps,
    columns: tuple[str, str, str],
    chosen: ChosenRows | None = None,
) -> Iterator[NumberedTraceRow]:
    """Yield the requests of a table with a time and two lengths.

    Args:
        reading: The file.
        workload: Its settings.
        clock: Reads the times.
        columns: Usual names of the columns of time, prompt length and answer length, for messages.
        chosen: The rows to take; None takes all.

    Raises:
        RunError: A column is missing, a row is bad (unless `workload.on_error` is skip), or no row was chosen.
    """
    chosen = chosen or ChosenRows({})
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
            time_s = row_time_s(row, clock)
            if time_s is None:
                raise ValueError(f"{columns[0]} is missing")
            found = TraceRow(
                time_s,
                needed(length(row, PROMPT_TOKENS), columns[1]),
                needed(length(row, OUTPUT_TOKENS), columns[2]),
                extra=request_fields([row], workload.api) if workload.request_fields == "send" else None,
            )
        except ValueError as error:
            reading.bad(line, str(error))
            continue
        name_unused(reading, row)
        yield line, found
    chosen.check(reading)


def row_time_s(row: Row, clock: Timestamps) -> float | None:
    """Return the recorded time of a row in seconds, None if it has none; raises ValueError for what is no time."""
    for name in row.known_as(TIME):
        if (value := row.take(name)) is not None:
            return clock.seconds(value, row.named(name))
    return None


def needed(count: int | None, name: str) -> int:
    """Return the count; raises ValueError that names the field if it is None."""
    if count is None:
        raise ValueError(f"{name} is missing")
    return count


def _check_columns(reading: FileReading, row: Row, columns: tuple[str, str, str], chosen: ChosenRows) -> None:
    wanted = zip(columns, (TIME, PROMPT_TOKENS, OUTPUT_TOKENS), strict=True)
    missing = [column for column, names in wanted if not row.known_as(names)]
    missing += [column for column in chosen.wanted if not row.has_field(column)]
    if missing:
        raise reading.wrong_columns(missing, row.names())
