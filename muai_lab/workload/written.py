"""Prompts and conversations in rows of files, in the forms that chat APIs and benchmarks give them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from muai_lab.settings.workload import Api
from muai_lab.workload.fields import OUTPUT_LIMITS, OUTPUT_TOKENS, Row, length, limit, text
from muai_lab.workload.messages import message_of
from muai_lab.workload.prompts import plain, user
from muai_lab.workload.reading import FileReading, number, shown
from muai_lab.workload.request_fields import BODIES, PARAMETERS, request_fields
from muai_lab.workload.schedule import Message, message_text

_NESTED = (*BODIES, "request", "input")
# `text` comes after `instruction`: beside it, Alpaca's `text` holds the recorded answer too.
_PROMPTS = ("prompt", "text_input", "question", "instruction", "text", "query", "input", "inputs", "content")
_ABOUT = ("input", "context")
"""Texts that an instruction is about, as Alpaca and Dolly name them."""
_ANSWERS = ("completion", "response", "answer", "output")
_SYSTEM = ("system", "system_prompt")
_CONVERSATIONS = ("conversations", "conversation")
_MILLISECONDS = 1e3

USUAL = (*_PROMPTS, *_NESTED, *_CONVERSATIONS, "messages", "turns")
"""Fields that may hold the prompt or conversation."""


@dataclass(frozen=True, slots=True)
class WrittenTurn:
    """One turn of a written prompt or conversation.

    Attributes:
        messages: Its new messages, at least one.
        output_tokens: Length of its answer, None if the file has none.
        answer: A recorded answer, of which only the length is used.
        think_s: Seconds from the previous answer, None if the file has none.
        extra: Further fields of the request's body, as JSON.
    """

    messages: tuple[Message, ...]
    output_tokens: int | None = None
    answer: str | None = None
    think_s: float | None = None
    extra: str | None = None


Written = tuple[WrittenTurn, ...]
"""A prompt, or the turns of a conversation."""


@dataclass(frozen=True, slots=True)
class Form:
    """The interpretation of rows.

    Attributes:
        api: Endpoint of the requests.
        send: Fields such as `temperature` are sent along.
        max_turns: Most turns of a conversation, None for all.
        prompt, system, output: Names of the fields, None for the usual ones.
    """

    api: Api
    send: bool = True
    max_turns: int | None = None
    prompt: str | None = None
    system: str | None = None
    output: str | None = None


class RowReader:
    """Reads the rows of one file; `reading` counts left-out, changed and ignored parts."""

    def __init__(self, reading: FileReading, form: Form) -> None:
        self._reading = reading
        self._form = form

    def read(self, row: Row) -> Written | None:
        """Return the turns of a row, None if it has none, which is counted; raises ValueError for an invalid row."""
        rows = _nested(row)
        if row.inner("body") is not None:
            self._check_endpoint(row)
        written = self._asked(rows)
        if written is None:
            return None
        output = self._output(rows)
        extra = request_fields(rows, self._form.api) if self._form.send else None
        turns = tuple(
            replace(
                turn,
                output_tokens=output if turn.output_tokens is None else turn.output_tokens,
                extra=turn.extra or extra,
            )
            for turn in written
        )
        if any(turn.output_tokens == 0 for turn in turns):
            self._reading.leave_out("with an answer of 0 tokens")
            return None
        return turns

    def _check_endpoint(self, row: Row) -> None:
        """Check endpoint and method of a line of a batch file; raises ValueError for another endpoint."""
        url, method = row.take("url"), row.take("method")
        if method is not None and str(method).upper() != "POST":
            raise ValueError(f"method is {shown(method)}, expected POST")
        if url is None:
            return
        if not isinstance(url, str) or not url.rstrip("/").endswith("/completions"):
            raise ValueError(f"url is {shown(url)}, expected /v1/chat/completions or /v1/completions")
        api = "chat" if url.rstrip("/").endswith("chat/completions") else "completions"
        if api != self._form.api:
            self._reading.remark(f"for the {api} endpoint: sent to that of workload.api={self._form.api}")

    def _asked(self, rows: Sequence[Row]) -> Written | None:
        system = self._system(rows)
        if self._form.prompt is not None:
            return self._prompt(rows[0], self._form.prompt, system)
        for row in rows:
            if "messages" in row:
                return self._history(row, "messages", system)
            for name in _CONVERSATIONS:
                if name in row:
                    return self._dialogue(row, name, system)
            if "turns" in row:
                return self._turns(row, system)
            for name in _PROMPTS:
                if name in row and row.inner(name) is None:
                    return self._prompt(row, name, system)
        for name in rows[0].names():
            if name in _PROMPTS:
                raise ValueError(f"{name} is {shown(rows[0].peek(name))}, expected a text")
        raise ValueError(
            f"expected messages, conversations, turns or prompt, found {rows[0].listed()}; workload.kind=table with "
            "workload.prompt_column reads a text of another name"
        )

    def _system(self, rows: Sequence[Row]) -> list[Message]:
        names = _SYSTEM if self._form.system is None else (self._form.system,)
        for row in rows:
            for name in names:
                if name in row:
                    return [{"role": "system", "content": text(row.take(name), row.named(name))}]
        return []

    def _prompt(self, row: Row, name: str, system: list[Message]) -> Written | None:
        value = row.take(name)
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return self._history(row, name, system)
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            value = value[0]
        asked = text(value, row.named(name))
        if name == "instruction":
            about = [row.take(each) for each in _ABOUT if isinstance(row.peek(each), str)]
            asked = "\n\n".join((asked, *filter(None, about)))
        return (WrittenTurn((*system, user(asked)), answer=self._answer(row)),)

    def _answer(self, row: Row) -> str | None:
        """Return a recorded answer, None if there is none."""
        for name in _ANSWERS:
            if name in row and isinstance(value := row.take(name), str):
                return value
        return None

    def _history(self, row: Row, name: str, system: list[Message]) -> Written | None:
        """Return messages that are sent unchanged, except an answer at their end, of which only the length is used."""
        said = [*system, *self._messages(row, name)]
        answer = None
        if said and said[-1]["role"] == "assistant":
            answer = plain(said.pop())["content"]
            if not any(message["role"] != "system" for message in said):
                raise ValueError(f"{row.named(name)} holds an answer and no question")
        if not any(map(_says_something, said)):
            self._reading.leave_out("with an empty conversation")
            return None
        return (WrittenTurn(tuple(said), answer=answer or None),)

    def _messages(self, row: Row, name: str) -> list[Message]:
        return [message_of(value, self._reading, row.named(name)) for value in _list(row, name)]

    def _dialogue(self, row: Row, name: str, system: list[Message]) -> Written | None:
        """Return a conversation that continues with the server's answers; recorded answers only give lengths."""
        turns: list[WrittenTurn] = []
        before = list(system)
        for message in self._messages(row, name):
            said, role = plain(message)["content"], message["role"]
            if role == "user" and said.strip():
                turns.append(WrittenTurn((*before, message)))
                before = []
            elif role == "user":
                self._reading.remark("with an empty question, which is passed over")
            elif role in ("system", "developer"):
                before.append(message)
            elif role != "assistant":
                self._reading.remark("with a message of another role than user and assistant: they end before it")
                break
            elif not turns:
                self._reading.leave_out("with a conversation whose beginning is missing")
                return None
            elif turns[-1].answer is None:
                turns[-1] = replace(turns[-1], answer=said or None)
        return self._cut(turns)

    def _turns(self, row: Row, system: list[Message]) -> Written | None:
        """Return turns from texts (MT-bench), or from objects with a text, a delay in ms and a length (aiperf)."""
        turns: list[WrittenTurn] = []
        for value in _list(row, "turns"):
            if isinstance(value, str):
                turn = WrittenTurn((user(text(value, "turns")),))
            elif isinstance(value, dict):
                turn = self._turn(row.element("turns", value))
            else:
                raise ValueError(f"turns holds {shown(value)}, expected a text or an object with a text")
            turns.append(turn if turns else replace(turn, messages=(*system, *turn.messages)))
        return self._cut(turns)

    def _turn(self, row: Row) -> WrittenTurn:
        name = next((name for name in ("text", "texts", *_PROMPTS) if name in row), "text")
        value = row.take(name)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        role, delay = row.take("role"), row.take("delay")
        return WrittenTurn(
            ({"role": role if isinstance(role, str) else "user", "content": text(value, row.named(name))},),
            output_tokens=self._output([row]),
            think_s=None if delay is None else pause_s(delay, row.named("delay")),
            extra=request_fields([row], self._form.api) if self._form.send else None,
        )

    def _cut(self, turns: list[WrittenTurn]) -> Written | None:
        if not turns:
            self._reading.leave_out("with an empty conversation")
            return None
        most = self._form.max_turns
        if most is not None and len(turns) > most:
            self._reading.remark(f"with more than {most} turns: the others are not asked, see workload.max_turns")
            turns = turns[:most]
        return tuple(turns)

    def _output(self, rows: Sequence[Row]) -> int | None:
        """Return the length of the answer: a recorded one, else a limit."""
        if self._form.output is not None:
            return limit(rows[0].take(self._form.output), self._form.output)
        places = list(_with_parameters(rows))
        lengths = [count for place in places if (count := length(place, OUTPUT_TOKENS)) is not None]
        limits = [count for place in places if (count := length(place, OUTPUT_LIMITS)) is not None]
        if lengths and limits and lengths[0] != limits[0]:
            self._reading.remark("with a length and another limit of the answer: the length is taken")
        return next(iter(lengths + limits), None)


def _says_something(message: Message) -> bool:
    """True if the message has a text that is not blank, parts such as images, or tool calls."""
    content = message.get("content")
    return bool(message_text(message).strip() or message.get("tool_calls") or isinstance(content, list))


def pause_s(value: Any, name: str) -> float:
    """Return the seconds of a pause in milliseconds; raises ValueError if it is none."""
    if (pause := number(value, name)) < 0:
        raise ValueError(f"{name} is {shown(value)}, expected a time from 0")
    return pause / _MILLISECONDS


def _nested(row: Row) -> list[Row]:
    """Return the row and the objects in it that may hold its request."""
    rows = [row]
    for outer in rows:
        rows += [inner for name in _NESTED if len(rows) < 4 and (inner := outer.inner(name)) is not None]
    return rows


def _with_parameters(rows: Iterable[Row]) -> Iterable[Row]:
    for row in rows:
        yield row
        for name in ("usage", *PARAMETERS):
            if (inner := row.inner(name)) is not None:
                yield inner


def _list(row: Row, name: str) -> list[Any]:
    value = row.take(name)
    if isinstance(value, str):  # of a CSV file, or of a table that keeps JSON in texts
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{row.named(name)} is {shown(value)}, expected a JSON list") from None
    if not isinstance(value, list):
        raise ValueError(f"{row.named(name)} is {shown(value)}, expected a list")
    return value
