"""JSON files of users: lines, a list on one line or many, or a single object; compressed or not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import orjson

from muai_lab.workload.reading import FileReading, shown

_BETWEEN = re.compile(r"[\s,]*")
_WRAPPERS = ("data", "requests", "rows", "entries")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

JsonEntry = tuple[int, Any]
"""The line at which a value begins, and the value."""


def json_entries(reading: FileReading) -> Iterator[JsonEntry]:
    """Yield the values of the file, one after another.

    A list yields its elements. If the file is a single object with a list as `data` (or `requests`, `rows`, `entries`),
    it yields the elements of that list. A truncated list yields the elements before its end.
    """
    entries = _values(reading)
    first = next(entries, None)
    if first is None:
        return
    second = next(entries, None)
    if second is None:
        yield from _unwrapped(reading, first)
        return
    yield first
    yield second
    yield from entries


def _values(reading: FileReading) -> Iterator[JsonEntry]:
    lines = ((number, line) for number, line in reading.lines() if line.strip())
    begun = list(_some(lines, 2))
    if not begun:
        return
    read = chain(begun, lines)
    if _is_document([line for _, line in begun]):
        yield from _document(reading, read)
        return
    for number, line in read:
        try:
            yield number, _value(line)
        except ValueError as error:
            reading.bad(number, str(error))


def _some(lines: Iterator[tuple[int, str]], count: int) -> Iterator[tuple[int, str]]:
    for _ in range(count):
        line = next(lines, None)
        if line is not None:
            yield line


def _is_document(begun: list[str]) -> bool:
    """True if the file is one JSON text over many lines, judged by its first two lines that are not empty."""
    first = begun[0].strip()
    if first.startswith("["):
        return True
    goes_on = first.startswith("{") and first[-1] in "{[,:"
    return goes_on and not any(_whole(line) for line in begun)


def _whole(line: str) -> bool:
    try:
        return isinstance(_value(line), dict)
    except ValueError:
        return False


def _value(line: str) -> Any:
    """Return the value on a line, with NaN as Python and JavaScript write it; raises ValueError if it is no JSON."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        problem = f"no JSON ({error.msg} at column {error.colno})"
    try:
        return _sound(json.loads(line), line)
    except (ValueError, RecursionError):
        raise ValueError(problem) from None


def _sound(value: Any, text: str) -> Any:
    """Return the value; raises ValueError if a text in it has half of a surrogate pair, which UTF-8 cannot hold."""
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a surrogate pair") from None
    return value


def _document(reading: FileReading, lines: Iterator[tuple[int, str]]) -> Iterator[JsonEntry]:
    """Yield the elements of a list, or a sequence of objects, with the numbers of their first lines."""
    numbers: list[int] = []
    texts: list[str] = []
    for number, line in lines:
        numbers.append(number)
        texts.append(line)
    text = "\n".join(texts)
    decoder = json.JSONDecoder()
    place = _skip(text, 0)
    in_list = text.startswith("[", place)
    place += in_list
    row, seen = 0, 0
    while (place := _skip(text, place)) < len(text) and not (in_list and text[place] == "]"):
        row += text.count("\n", seen, place)
        seen = place
        try:
            entry, end = decoder.raw_decode(text, place)
            yield numbers[row], _sound(entry, text[place:end])
        except json.JSONDecodeError as error:
            at = numbers[min(error.lineno, len(numbers)) - 1]
            where = "list" if in_list else "file"
            reading.bad(numbers[row], f"the {where} breaks off in the entry that begins here ({error.msg}, line {at})")
            return
        except RecursionError:
            reading.bad(numbers[row], "the entry that begins here is nested too deeply")
            return
        except ValueError as error:
            reading.bad(numbers[row], str(error))
        place = end
    if in_list and place >= len(text):
        reading.bad(numbers[-1], "the list has no end: the file was cut off")
    elif in_list and text[place + 1 :].strip():
        reading.bad(numbers[row + text.count("\n", seen, place)], "the list ends here, and more follows")


def _skip(text: str, place: int) -> int:
    found = _BETWEEN.match(text, place)
    assert found is not None, "the pattern matches the empty text"
    return found.end()


def _unwrapped(reading: FileReading, entry: JsonEntry) -> Iterator[JsonEntry]:
    line, value = entry
    wrapped = [name for name in _WRAPPERS if isinstance(value, dict) and isinstance(value.get(name), list)]
    if len(wrapped) != 1:
        yield entry
        return
    for name in value:
        if name != wrapped[0]:
            reading.ignore(name)
    for inner in value[wrapped[0]]:
        yield line, inner


def row_of(entry: Any) -> dict[str, Any]:
    """Return the entry, which must be an object; raises ValueError otherwise."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, found {shown(entry)}")
    return entry
