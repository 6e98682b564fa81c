"""Tables of prompts: CSV or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from muai_lab.errors import RunError
from muai_lab.settings.workload import TableWorkload
from muai_lab.workload.prompt_set import Written, WrittenTurn, prompt_set_source
from muai_lab.workload.prompts import PromptMaker, user
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.reading import Reading, shown, tokens
from muai_lab.workload.schedule import Message
from muai_lab.workload.source import Source

# A field may hold a whole document; the csv module's own limit is 128 KiB.
_LONGEST_FIELD = 1 << 27


def table_source(workload: TableWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """The prompts of the table. Raises RunError for a file that is none or lacks a column, for the first bad row."""
    reading = Reading.of(workload)
    wanted = (workload.prompt_column, workload.system_column, workload.output_tokens_column)
    columns = [column for column in wanted if column is not None]
    match reading.path.suffix.lower():
        case ".csv":
            rows = _csv_rows(reading, columns)
        case ".parquet" | ".pq":
            rows = _parquet_rows(reading, columns)
        case suffix:
            raise RunError(f"{reading.path}: a table is a .csv or .parquet file, not {suffix or 'one without ending'}")
    return prompt_set_source(workload, reading, _prompts(workload, reading, rows), streams, maker)


def _prompts(
    workload: TableWorkload, reading: Reading, rows: Iterable[tuple[int, Mapping[str, Any]]]
) -> Iterator[Written]:
    for number, row in rows:
        try:
            yield (_turn(workload, row),)
        except ValueError as error:
            reading.bad(number, str(error))


def _turn(workload: TableWorkload, row: Mapping[str, Any]) -> WrittenTurn:
    messages: list[Message] = []
    if workload.system_column is not None and row[workload.system_column]:
        messages.append({"role": "system", "content": str(row[workload.system_column])})
    prompt = row[workload.prompt_column]
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{workload.prompt_column} is {shown(prompt)}, expected a text")
    messages.append(user(prompt))
    output = None
    if workload.output_tokens_column is not None:
        output = tokens(row[workload.output_tokens_column], workload.output_tokens_column)
    return WrittenTurn(tuple(messages), output)


def _csv_rows(reading: Reading, columns: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(_LONGEST_FIELD)
    header: list[str] | None = None
    reader = csv.reader(f"{line}\n" for _, line in reading.lines())
    begins = 1
    try:
        for fields in reader:
            line, begins = begins, reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = fields
                if missing := [column for column in columns if column not in header]:
                    raise reading.wrong_columns(missing, header)
            elif len(fields) != len(header):
                reading.bad(line, f"{len(fields)} fields instead of {len(header)}")
            else:
                yield line, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        reading.bad(reader.line_num, f"no CSV: {error}")


def _parquet_rows(reading: Reading, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with pq.ParquetFile(reading.path) as file:
            there = file.schema_arrow.names
            if missing := [column for column in columns if column not in there]:
                raise reading.wrong_columns(missing, there)
            number = 0
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowInvalid as error:
        raise RunError(f"{reading.path} is no Parquet file, or a damaged one: {error}; check workload.path") from error
    except OSError as error:
        raise reading.unreadable(error) from error
