"""Prompts and conversations from rows of a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from muai_lab.settings.workload import ConversationSetWorkload, TableWorkload
from muai_lab.workload.fields import Row, name_unused
from muai_lab.workload.prompt_set import prompt_set_source
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.reading import FileReading
from muai_lab.workload.row_files import format_of, rows_of
from muai_lab.workload.source import Source
from muai_lab.workload.written import USUAL, Form, RowReader, Written

_SEVERAL = ("payloads", "payload")


def conversations_source(workload: ConversationSetWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """Return the prompts and conversations of the file.

    Raises:
        RunError: The file has none, or has a bad row (unless `workload.on_error` is skip).
    """
    reading = FileReading.of(workload)
    form = Form(workload.api, workload.request_fields == "send", workload.max_turns)
    return prompt_set_source(workload, reading, _written(reading, form), streams, maker, workload.think_time)


def table_source(workload: TableWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """Return the prompts of the table; raises as `conversations_source`, and if a named column is missing."""
    reading = FileReading.of(workload)
    columns = (workload.prompt_column, workload.system_column, workload.output_tokens_column)
    form = Form(workload.api, workload.request_fields == "send", 1, *columns)
    _check_columns(reading, form)
    return prompt_set_source(workload, reading, _written(reading, form), streams, maker)


def _written(reading: FileReading, form: Form) -> Iterator[Written]:
    reader = RowReader(reading, form)
    texts = format_of(reading) == "csv"
    for line, fields in rows_of(reading):
        for each in _requests(fields):
            row = Row(each, texts=texts)
            try:
                written = reader.read(row)
            except ValueError as error:
                reading.bad(line, str(error))
                continue
            name_unused(reading, row)
            if written is not None:
                yield written


def _check_columns(reading: FileReading, form: Form) -> None:
    """Raise RunError if the table's first row lacks a named column, or any column of prompts."""
    for _, fields in rows_of(FileReading(reading.path, "skip")):
        missing = [name for name in (form.prompt, form.system, form.output) if name and name not in fields]
        if form.prompt is None and not any(name in fields for name in USUAL):
            missing.insert(0, "prompt")
        if missing:
            raise reading.wrong_columns(missing, list(map(str, fields)))
        return


def _requests(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the requests of a row: one, or those of a list of bodies (inputs.json of aiperf and GenAI-Perf)."""
    several = next((name for name in _SEVERAL if isinstance(fields.get(name), list)), None)
    if several is None:
        yield fields
        return
    bodies = fields[several]
    shared = {name: value for name, value in fields.items() if name != several}
    for body in bodies:
        yield {**shared, "payload": body}
