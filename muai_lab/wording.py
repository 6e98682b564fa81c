"""Values as text for people: sensible digits, units, plurals, settings as on a command line."""

from __future__ import annotations

import math
from typing import Any

MISSING = "-"


def number(value: float | None) -> str:
    """Three significant digits below 1,000, whole numbers above; `-` for what is missing."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    decimals = 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    written = f"{value:.{decimals}f}"
    return written if float(written) else f"{value:.2g}"


def count(value: float | None) -> str:
    """A whole number with separators; `-` for what is missing."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def milliseconds(value_s: float | None) -> str:
    """Seconds written as a number of milliseconds, without the unit."""
    return number(None if value_s is None else value_s * 1e3)


def duration(value_s: float | None) -> str:
    """Seconds with the unit that suits: `250 µs`, `28.6 ms`, `3.40 s`."""
    if value_s is None or not math.isfinite(value_s):
        return MISSING
    if abs(value_s) < 0.001 and value_s != 0:
        return f"{number(value_s * 1e6)} µs"
    if abs(value_s) < 1.0:
        return f"{number(value_s * 1e3)} ms"
    return f"{number(value_s)} s"


def percent(value: float | None) -> str:
    """A share as a percentage; never rounded up to 100 % or down to 0 %."""
    if value is None or not math.isfinite(value):
        return MISSING
    written = f"{value * 100:.1f}"
    if written == "100.0":
        written = "100" if value == 1.0 else ">99.9"
    elif written == "0.0":
        written = "0" if value == 0.0 else "<0.1"
    return f"{written.removesuffix('.0')} %"


def size(value_bytes: float | None) -> str:
    """Bytes in binary units: `381 MiB`."""
    if value_bytes is None or not math.isfinite(value_bytes):
        return MISSING
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(value_bytes) < 1024 or unit == "GiB":
            return f"{number(value_bytes)} {unit}"
        value_bytes /= 1024
    return MISSING


def plural(count: int, noun: str) -> str:
    """`1 request`, `20 requests`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def setting_text(value: Any) -> str:
    """A setting as it is written on a command line: `null`, `true`, `8` (also for 8.0), `a,b`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, list):
        return ",".join(setting_text(entry) for entry in value)
    return str(value)
