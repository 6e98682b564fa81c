"""x"""

from __future__ import annotations

from typing import Any

REPORT = "report.html"


def write_report(*args: Any) -> None: ...
