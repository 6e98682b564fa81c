"""Values as the text of environment variables."""

from __future__ import annotations

from collections.abc import Mapping


def format_text(value: object) -> str:
    """The text that `parse_text` turns back into `value`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(value)
    if isinstance(value, Mapping):
        return ",".join(f"{name}={item}" for name, item in value.items())
    return str(value)
