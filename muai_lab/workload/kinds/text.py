"""`text`: plain text, a prompt in each line."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from muai_lab.settings.workload import TextWorkload
from muai_lab.workload.prompt_set import prompt_set_source
from muai_lab.workload.prompts import PromptMaker, user
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.reading import FileReading
from muai_lab.workload.source import Source
from muai_lab.workload.written import Written, WrittenTurn

_READERS = {".csv": "table", ".tsv": "table", ".json": "openai_jsonl"}
"""Endings of files whose lines are no prompts, and the kinds for them."""


def source(workload: TextWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """Return the lines of the file that are not empty; raises RunError if there is none."""
    reading = FileReading.of(workload)
    return prompt_set_source(workload, reading, _lines(reading), streams, maker)


def _lines(reading: FileReading) -> Iterator[Written]:
    reader = _READERS.get(reading.path.suffix.lower())
    for _, line in reading.lines():
        if not line.strip():
            continue
        if _is_json_object(line):
            reading.remark("with a JSON object, asked as it stands: workload.kind=openai_jsonl reads its fields")
        elif reader is not None:
            reading.remark(
                f"of a {reading.path.suffix} file, asked line by line: workload.kind={reader} reads its fields"
            )
        yield (WrittenTurn((user(line),)),)


def _is_json_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
