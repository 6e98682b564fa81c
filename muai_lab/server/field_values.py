"""Values of request fields that no type alone describes: prompts, token ids, stop strings.

Each function returns the value in the form that requests hold, or raises ValueError with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

INT32_MAX = 2**31 - 1
MAX_PROMPTS = 2048
MAX_TOKEN_IDS = 2**20  # of all prompts of a request together
MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 2048  # of all stop strings of a request together

Prompt = str | Sequence[int]
"""Text, or token ids: a list as JSON gives it, an array if it was parsed in another process."""


def _is_id_list(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(type(item) is int and 0 <= item <= INT32_MAX for item in value)


def prompts(value: Any) -> list[Prompt]:
    """Return one prompt or several, each text or token ids, as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        ids = len(value) + sum(len(item) for item in value if isinstance(item, list))
        if ids > MAX_TOKEN_IDS:
            raise ValueError(f"holds more than {MAX_TOKEN_IDS} token ids")
    if _is_id_list(value):
        return [value]
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) > MAX_PROMPTS:
            raise ValueError(f"holds {len(value)} prompts; one request may hold {MAX_PROMPTS}")
        if all(isinstance(item, str) for item in value):
            return list(value)
        if all(_is_id_list(item) for item in value):
            return list(value)
    raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists, and not empty")


def begun_output(value: Any) -> list[int]:
    """Return the token ids of an output that has begun, perhaps none."""
    if value is None or value == []:
        return []
    if isinstance(value, list) and len(value) > MAX_TOKEN_IDS:
        raise ValueError(f"holds more than {MAX_TOKEN_IDS} token ids")
    if not _is_id_list(value):
        raise ValueError("must be a list of token ids")
    ids: list[int] = value
    return ids


def stop_strings(value: Any) -> tuple[str, ...]:
    """Return the stop strings of a request: one, several or none."""
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if isinstance(strings, list) and len(strings) > MAX_STOP_STRINGS:
        raise ValueError(f"holds {len(strings)} strings; {MAX_STOP_STRINGS} are allowed")
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        raise ValueError("must be a string or a list of strings")
    if not all(strings):
        raise ValueError("must not hold an empty string")
    characters = sum(map(len, strings))
    if characters > MAX_STOP_CHARACTERS:
        raise ValueError(f"holds {characters} characters; {MAX_STOP_CHARACTERS} in all are allowed")
    return tuple(strings)
