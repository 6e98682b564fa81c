"""JSON lines as OpenAI's batch and fine-tuning files have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from muai_lab.settings.workload import OpenAiJsonlWorkload
from muai_lab.workload.prompt_set import Written, WrittenTurn, prompt_set_source
from muai_lab.workload.prompts import PromptMaker, user
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.reading import Reading, shown, tokens
from muai_lab.workload.schedule import Message
from muai_lab.workload.source import Source


def openai_jsonl_source(workload: OpenAiJsonlWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """The prompts of the file. Raises RunError for a file without any, and for its first line that makes no sense."""
    reading = Reading.of(workload)
    return prompt_set_source(workload, reading, _prompts(reading), streams, maker)


def _prompts(reading: Reading) -> Iterator[Written]:
    for number, line in reading.lines():
        if not line.strip():
            continue
        try:
            yield (_turn(line),)
        except ValueError as error:
            reading.bad(number, str(error))


def _turn(line: str) -> WrittenTurn:
    try:
        entry: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg} at column {error.colno})") from None
    if isinstance(entry, dict) and isinstance(entry.get("body"), dict):
        entry = entry["body"]  # a line of a batch file
    if not isinstance(entry, dict) or not ("messages" in entry or "prompt" in entry):
        raise ValueError(f"expected a JSON object with messages or prompt, found {shown(entry)}")
    limit = entry.get("max_completion_tokens") or entry.get("max_tokens")
    output = None if limit is None else tokens(limit, "max_tokens")
    if "messages" not in entry:
        prompt = entry["prompt"]
        if not isinstance(prompt, str) or not prompt:
            raise ValueError(f"prompt is {shown(prompt)}, expected a text")
        return WrittenTurn((user(prompt),), output)
    said = [_message(message) for message in _list(entry["messages"])]
    answer = said.pop()["content"] if said[-1]["role"] == "assistant" else None
    if not said:
        raise ValueError("messages holds an answer and no question")
    return WrittenTurn(tuple(said), output, answer)


def _list(messages: Any) -> list[Any]:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages is {shown(messages)}, expected a list with at least one message")
    return messages


def _message(message: Any) -> Message:
    """Role and text of a message; the content may be a text or a list of text parts."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        content = "".join(str(part["text"]) for part in content)
    if not isinstance(content, str) or not isinstance(message.get("role"), str):
        raise ValueError(f"message {shown(message)} has no role or no text")
    return {"role": message["role"], "content": content}
