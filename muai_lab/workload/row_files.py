"""Rows of a file in any format: CSV, Parquet, JSON lines or a JSON list."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from muai_lab.errors import RunError
from muai_lab.workload.json_entries import json_entries, row_of
from muai_lab.workload.reading import FileReading

# A field may hold a whole document; the csv module's own limit is 128 KiB.
_LONGEST_FIELD = 1 << 27
_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*"')
_SNIFFED_BYTES = 4096

NumberedRow = tuple[int, dict[str, Any]]
"""Line (of Parquet: row) from 1, and fields of a row; fields of a CSV file are texts."""


def rows_of(reading: FileReading) -> Iterator[NumberedRow]:
    """Yield the rows of the file; the ending of its name determines the format, else its first bytes.

    Raises:
        RunError: The file cannot be opened or has another format, or a row is bad (unless `workload.on_error` is skip).
    """
    match format_of(reading):
        case "csv":
            return _csv_rows(reading)
        case "parquet":
            return _parquet_rows(reading)
        case _:
            return _json_rows(reading)


def format_of(reading: FileReading) -> str:
    """Return `csv`, `parquet` or `json`; raises RunError for a binary file of another kind."""
    path = reading.path
    suffix = path.suffix.lower()
    if suffix == ".gz":
        suffix = Path(path.stem).suffix.lower()
    known = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet"}
    known |= dict.fromkeys((".json", ".jsonl", ".ndjson"), "json")
    if suffix in known:
        return known[suffix]
    head = reading.head(_SNIFFED_BYTES)
    if head.startswith(b"PAR1"):
        return "parquet"
    if b"\0" in head:
        raise RunError(f"{path} is neither CSV nor Parquet nor JSON: check workload.path")
    return "json" if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") else "csv"


def _json_rows(reading: FileReading) -> Iterator[NumberedRow]:
    for line, entry in json_entries(reading):
        try:
            yield line, row_of(entry)
        except ValueError as error:
            reading.bad(line, str(error))


def _csv_rows(reading: FileReading) -> Iterator[NumberedRow]:
    """Rows under a header. Fields beyond the header are accepted while they are empty, as a trailing comma makes them.

    The delimiter is the most frequent one of comma, semicolon, tab and bar in the header.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    lines = _Lines(reading)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        return
    delimiter = max(_DELIMITERS, key=_QUOTED.sub("", first).count)
    rows = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    try:
        header = _names(next(rows))
    except csv.Error as error:
        raise RunError(f"{reading.path}:{lines.number}: the header is no CSV: {error}; check workload.path") from error
    _check_names(f"{reading.path}:{lines.number}", header)
    while True:
        lines.begins = None
        try:
            fields = next(rows, None)
        except csv.Error as error:
            reading.bad(lines.begins or lines.number, f"no CSV: {error}")
            continue
        if fields is None:
            return
        line = lines.begins or lines.number
        if not any(field.strip() for field in fields):
            continue
        if len(fields) < len(header) or any(field.strip() for field in fields[len(header) :]):
            reading.bad(line, f"{len(fields)} fields instead of {len(header)}")
        else:
            yield line, dict(zip(header, fields, strict=False))


class _Lines:
    """The lines of a file with their ends, and the numbers of the first and last line of a row."""

    def __init__(self, reading: FileReading) -> None:
        self._lines = reading.lines()
        self.begins: int | None = None
        self.number = 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        self.begins = self.begins or self.number
        return f"{line}\n"


def _names(header: Sequence[str]) -> list[str]:
    """Return the columns' names up to the last that is not empty; nameless ones before it get a number."""
    names = [name.strip() for name in header]
    while names and not names[-1]:
        names.pop()
    return [name or f"column {place}" for place, name in enumerate(names, 1)]


def _check_names(where: str, names: Sequence[str]) -> None:
    """Raise RunError if two columns share a name: a row could hold only one of them."""
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise RunError(
            f"{where}: several columns are called {', '.join(map(repr, twice))}; rename them, or check workload.path"
        )


def _parquet_rows(reading: FileReading) -> Iterator[NumberedRow]:
    try:
        with pq.ParquetFile(reading.path) as file:
            _check_names(str(reading.path), file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RunError(f"{reading.path} is no Parquet file, or a damaged one: {error}; check workload.path") from error
    except OSError as error:
        raise reading.unreadable(error) from error
