"""Values from servers, checked on entry: other modules get no foreign type or range."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson

# Counts and times must fit the columns of the records; no answer comes near this.
COUNT_LIMIT = 2**31 - 1
_WORD_LIMIT = 100
_LABELS = frozenset({"type", "id", "index", "role", "object"})


def parse_object(payload: bytes) -> dict[str, Any] | None:
    """Return the JSON object in `payload`, None if it is no JSON or no object.

    Accepts deviations of real servers from the standard: half of a surrogate pair, from a text that is cut into UTF-16
    units, becomes a question mark; NaN and Infinity become null.
    """
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        value = _parse_leniently(payload)
    return value if type(value) is dict else None


def _parse_leniently(payload: bytes) -> Any:
    try:
        value = json.loads(payload, parse_constant=lambda _: None)
        return orjson.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def count(value: Any) -> int | None:
    """Return a number of tokens, None if `value` is of another type, negative, fractional, or too large."""
    if type(value) is int:
        return value if 0 <= value <= COUNT_LIMIT else None
    if isinstance(value, float) and value.is_integer():
        return count(int(value))
    return None


def nanoseconds(value_ms: Any) -> int | None:
    """Return a duration, given in milliseconds; None if `value_ms` is no duration."""
    if isinstance(value_ms, bool) or not isinstance(value_ms, int | float):
        return None
    if not math.isfinite(value_ms) or not 0 <= value_ms <= COUNT_LIMIT:
        return None
    return round(value_ms * 1e6)


def says_something(value: Any) -> bool:
    """True if a field of a delta holds any text; its labels (`type`, `id`, `index`) do not count."""
    if isinstance(value, list):
        return any(map(says_something, value))
    if isinstance(value, dict):
        return any(says_something(part) for name, part in value.items() if name not in _LABELS)
    return bool(value)


def word(value: Any) -> str | None:
    """Return a short text such as a finish reason, other values as JSON; None for an empty value."""
    if not value:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:_WORD_LIMIT]
