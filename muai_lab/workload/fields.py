"""Fields of a row by the names that tools give them, and a record of the used ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

from muai_lab.workload.reading import FileReading, shown, tokens

# Names are compared without case, spaces, hyphens and underscores: `Request tokens` is `request_tokens`.
TIME = ("timestamp", "arrivaltime", "arrivedat", "arrival", "time")
PROMPT_TOKENS = (
    "inputlength", "inputtokens", "inputlen", "prompttokens", "promptlen", "promptlength", "requesttokens",
    "contexttokens", "numinputtokens", "numprompttokens", "numprefilltokens", "prompttokenscount", "inputtokenscount",
    "isl",
)  # fmt: skip
OUTPUT_TOKENS = (
    "outputlength", "outputtokens", "outputlen", "expectedoutputlen", "generatedtokens", "responsetokens",
    "completiontokens", "numoutputtokens", "numgeneratedtokens", "numcompletiontokens", "numdecodetokens",
    "outputtokenscount", "completiontokenscount", "outputsequencelength", "osl",
)  # fmt: skip
"""Lengths of recorded or requested answers."""
OUTPUT_LIMITS = ("maxcompletiontokens", "maxtokens", "maxnewtokens", "maxoutputtokens", "numpredict", "npredict")
"""Limits of answers; a length has precedence over them."""


_NO_LIMIT = (-1, "-1", "-1.0")
_SHOWN = 8


class Row:
    """The fields of one row (or of an object inside it).

    A field that is null or an empty text does not count as a field.

    Args:
        fields: Values by name.
        name: Name of the field that holds the object.
        prefix: Text before names in messages and notes.
        texts: Values are texts of a CSV file.
    """

    __slots__ = ("_elements", "_fields", "_inner", "_layout", "_prefix", "_used", "name", "texts")

    def __init__(
        self, fields: Mapping[str, Any], *, name: str | None = None, prefix: str = "", texts: bool = False
    ) -> None:
        self.name = name
        self.texts = texts
        self._fields = fields
        self._layout = _layout(tuple(fields))
        self._used: set[str] = set()
        self._prefix = prefix
        # Most rows hold no objects, and a trace has millions of rows: these are created on demand.
        self._inner: dict[str, Row] | None = None
        self._elements: list[Row] | None = None

    def __contains__(self, name: str) -> bool:
        return self._fields.get(name) not in (None, "")

    def has_field(self, name: str) -> bool:
        """True if there is a field of exactly this name, with or without a value."""
        return name in self._fields

    def names(self) -> list[str]:
        """Return names of all fields."""
        return [str(name) for name in self._fields]

    def listed(self) -> str:
        """Return the names of the first fields, for a message."""
        names = list(islice(self._fields, _SHOWN))
        return ", ".join(str(name)[:40] for name in names) + (", …" if len(self._fields) > _SHOWN else "") or "none"

    def named(self, name: str) -> str:
        """Return the name for messages."""
        return f"{self._prefix}{name}"

    def take(self, name: str) -> Any:
        """Return the value of the field of exactly this name, None if it is missing, and mark it as used."""
        self._used.add(name)
        value = self._fields.get(name)
        return None if isinstance(value, str) and not value else value

    def peek(self, name: str) -> Any:
        """Return the value of the field of exactly this name, without marking it as used."""
        return self._fields.get(name)

    def known_as(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the fields known under one of these names (see above), in their order, with or without values."""
        return self._layout.known_as(names)

    def inner(self, name: str) -> Row | None:
        """Return the object in a field, with a record of use of its own; None if there is no object."""
        if self._inner is None or name not in self._inner:
            value = self._fields.get(name)
            if not isinstance(value, dict):
                return None
            self._used.add(name)
            self._inner = self._inner or {}
            self._inner[name] = Row(value, name=name, prefix=f"{self._prefix}{name}.")
        return self._inner[name]

    def element(self, name: str, value: Mapping[str, Any]) -> Row:
        """Return an object in the list that a field holds, with a record of use of its own."""
        self._elements = self._elements or []
        self._elements.append(Row(value, name=name, prefix=f"{self._prefix}{name}[]."))
        return self._elements[-1]

    def unused(self) -> Iterator[str]:
        """Yield the names of fields with a value that were not used."""
        used, prefix = self._used, self._prefix
        for name, value in self._fields.items():
            if name not in used and value is not None and value != "":
                yield f"{prefix}{name}"
        for inner in (self._inner or {}).values():
            yield from inner.unused()
        for element in self._elements or ():
            yield from element.unused()

    def among(self, names: frozenset[str]) -> tuple[str, ...]:
        """Return the fields of exactly these names, with or without values."""
        return self._layout.among(names)

    def left(self) -> Iterator[tuple[str, Any]]:
        """Yield the fields that were not used yet, without those of inner objects."""
        for name, value in self._fields.items():
            if name not in self._used and value is not None and value != "":
                yield name, value


def name_unused(reading: FileReading, row: Row) -> None:
    """Count the unused fields of a row after it was read."""
    for name in row.unused():
        reading.ignore(name)


def length(row: Row, names: tuple[str, ...]) -> int | None:
    """Return a number of tokens known under one of these names, None if there is none or it is -1 ("no limit").

    Raises ValueError if it is no number, or if two names have different numbers.
    """
    found: tuple[str, int] | None = None
    for name in row.known_as(names):
        count = limit(row.take(name), row.named(name))
        if count is None:
            continue
        if found is not None and found[1] != count:
            raise ValueError(f"{row.named(found[0])} is {found[1]}, but {row.named(name)} is {count}")
        found = found or (name, count)
    return None if found is None else found[1]


def limit(value: Any, name: str) -> int | None:
    """Return a number of tokens, None for null and for -1 ("no limit"); raises ValueError for other values."""
    return None if value is None or value in _NO_LIMIT else tokens(value, name)


def text(value: Any, name: str) -> str:
    """Return a text that is not blank; raises ValueError otherwise."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {shown(value)}, expected a text")
    return value


def squeezed(name: str) -> str:
    """Return a name in the spelling of the lists above."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


class _Layout:
    """The names of the fields of many rows, with cached look-ups."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._squeezed: dict[str, str] = {}
        for name in names:
            self._squeezed.setdefault(squeezed(str(name)), name)
        self._known: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._among: dict[frozenset[str], tuple[str, ...]] = {}

    def known_as(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return fields whose squeezed names are among these, in their order."""
        if names not in self._known:
            self._known[names] = tuple(self._squeezed[name] for name in names if name in self._squeezed)
        return self._known[names]

    def among(self, names: frozenset[str]) -> tuple[str, ...]:
        """Return fields of exactly these names."""
        if names not in self._among:
            self._among[names] = tuple(name for name in self._names if name in names)
        return self._among[names]


@lru_cache(maxsize=1024)
def _layout(names: tuple[str, ...]) -> _Layout:
    return _Layout(names)
