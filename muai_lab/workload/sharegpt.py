"""ShareGPT's conversations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from muai_lab.settings.workload import ShareGptWorkload
from muai_lab.workload.prompt_set import Written, WrittenTurn, prompt_set_source
from muai_lab.workload.prompts import PromptMaker, user
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.reading import Reading, shown
from muai_lab.workload.source import Source

_HUMAN, _ANSWERING = frozenset({"human", "user"}), frozenset({"gpt", "assistant", "chatgpt", "bing", "bard"})
_BETWEEN = re.compile(r"[\s,]*")


def sharegpt_source(workload: ShareGptWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """The conversations of the file that a human opens. Raises RunError for a file without any, and for its first entry
    that makes no sense."""
    reading = Reading.of(workload)
    written = _conversations(reading, workload.max_turns)
    return prompt_set_source(workload, reading, written, streams, maker, workload.think_time)


def _conversations(reading: Reading, max_turns: int) -> Iterator[Written]:
    for line, entry in _entries(reading):
        try:
            turns = _turns(entry, max_turns)
        except ValueError as error:
            reading.bad(line, str(error))
        else:
            if turns:
                yield turns


def _entries(reading: Reading) -> Iterator[tuple[int, Any]]:
    """Each entry of the JSON list with the number of its line, one after another: so a list that breaks off gives what
    it has, and the place where it broke."""
    text = "\n".join(line for _, line in reading.lines())
    decoder = json.JSONDecoder()
    place = _BETWEEN.match(text, 0).end()  # type: ignore[union-attr]  # the pattern matches anywhere
    if place == len(text):
        return
    if text[place] != "[":
        reading.bad(1, f"expected a JSON list, found {shown(text[place : place + 20])}")
        return
    place += 1
    line, counted = 1, 0
    while (place := _BETWEEN.match(text, place).end()) < len(text) and text[place] != "]":  # type: ignore[union-attr]
        line += text.count("\n", counted, place)
        counted = place
        try:
            entry, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            reading.bad(line, f"the list breaks off in the entry that begins here ({error.msg}, line {error.lineno})")
            return
        yield line, entry
    if place >= len(text):
        reading.bad(text.count("\n") + 1, "the list has no end: the file was cut off")


def _turns(entry: Any, max_turns: int) -> Written:
    said = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(said, list):
        raise ValueError(f"expected an object with conversations, found {shown(entry)}")
    turns: list[WrittenTurn] = []
    for place, message in enumerate(said):
        speaker, text = _speech(message)
        if speaker in _HUMAN and text:
            if len(turns) == max_turns:
                break
            after = _speech(said[place + 1]) if place + 1 < len(said) else ("", "")
            answer = after[1] if after[0] in _ANSWERING else None
            turns.append(WrittenTurn((user(text),), answer=answer))
        elif not turns:
            return ()  # the beginning is missing: nobody asked this
    return tuple(turns)


def _speech(message: Any) -> tuple[str, str]:
    speaker = message.get("from") if isinstance(message, dict) else None
    text = message.get("value") if isinstance(message, dict) else None
    if not isinstance(speaker, str) or not isinstance(text, str):
        raise ValueError(f"{shown(message)} has no from or no value")
    return speaker, text
