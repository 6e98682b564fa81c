"""Settings from environment variables: systematic long names and the short names that the specification prints."""

from __future__ import annotations

import re
from collections.abc import Mapping

from muai_lab.settings.catalogue import ENVIRONMENT_PREFIXES, Key, keys_by_path
from muai_lab.settings.nearest import did_you_mean, nearest
from muai_lab.settings.origin import Given, Layer, Origin

_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def parse_text(key: Key, text: str) -> object:
    """Return the value that `text` means for `key`, not yet checked; text that is no value of the type stays text.

    bool: true/false/1/0/yes/no/on/off in any case. list: comma-separated. mapping: comma-separated `name=value`.
    null: `null` or empty (for a list or mapping, empty is the empty list or mapping).
    """
    text = text.strip()
    lower = text.lower()
    if lower == "null":
        return None
    if key.kind == "list":
        return tuple(item.strip() for item in text.split(",")) if text else ()
    if key.kind == "mapping":
        return _parse_mapping(text)
    if not text:
        return None
    if key.kind == "bool" and lower in _TRUE | _FALSE:
        return lower in _TRUE
    if key.kind == "int" and _INTEGER.fullmatch(text):
        return int(text)
    if key.kind == "float" and _NUMBER.fullmatch(text):
        return float(text)
    return text


def _parse_mapping(text: str) -> object:
    entries: dict[str, str] = {}
    for item in text.split(",") if text else ():
        name, equals, value = item.partition("=")
        if not equals:
            return text
        entries[name.strip()] = value.strip()
    return entries


def variables() -> dict[str, Key]:
    """Return every environment variable, by long and short names, with the key that it sets."""
    return {name: key for key in keys_by_path().values() for name in (key.env_long, key.env_short) if name is not None}


def read_environment(environ: Mapping[str, str]) -> tuple[Layer, list[str]]:
    """Return the values of MUAI_OPT_ and MUAI_MON_ variables, and the problems: unknown names, contradictions."""
    known = variables()
    prefixes = tuple(ENVIRONMENT_PREFIXES.values())
    problems = [
        f"{name}: no such environment variable{did_you_mean(nearest(name, known))}"
        for name in sorted(environ)
        if name.startswith(prefixes) and name not in known
    ]
    layer: dict[str, Given] = {}
    for key in keys_by_path().values():
        names = [name for name in (key.env_long, key.env_short) if name is not None and name in environ]
        if not names:
            continue
        values = [parse_text(key, environ[name]) for name in names]
        if len(values) == 2 and values[0] != values[1]:
            problems.append(f"{names[0]} and {names[1]} both set {key.path}, to different values: unset one of them")
        layer.update(_entries(key, values[0], Origin("environment", names[0])))
    return layer, problems


def _entries(key: Key, value: object, origin: Origin) -> Layer:
    if key.kind == "mapping" and isinstance(value, dict):
        return {f"{key.path}.{name}": Given(item, origin) for name, item in value.items()}
    return {key.path: Given(value, origin)}
