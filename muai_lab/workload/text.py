"""Plain text, a prompt in each line."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from muai_lab.settings.workload import TextWorkload
from muai_lab.workload.prompt_set import prompt_set_source
from muai_lab.workload.prompts import PromptMaker, user
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.reading import Reading
from muai_lab.workload.source import Source
from muai_lab.workload.written import Written, WrittenTurn


def text_source(workload: TextWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """The lines of the file that are not empty. Raises RunError when there is none."""
    reading = Reading.of(workload)
    return prompt_set_source(workload, reading, _lines(reading), streams, maker)


def _lines(reading: Reading) -> Iterator[Written]:
    for _, line in reading.lines():
        if not line.strip():
            continue
        if _is_json_object(line):
            reading.remark("that are JSON objects, asked as they are: workload.kind=openai_jsonl reads their fields")
        yield (WrittenTurn((user(line),)),)


def _is_json_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
