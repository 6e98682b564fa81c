"""Outcomes of a benchmark of many minutes: kept in a file after each, so that a later call goes on from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from muai_lab.files import write_whole

T = TypeVar("T")


def kept_outcomes(kind: type[T], file: Path | None) -> list[T]:
    """Outcomes of earlier calls; none without a file. kind: the dataclass of an outcome."""
    if file is None or not file.exists():
        return []
    return [kind(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))]


def keep_outcomes(outcomes: Sequence[Any], file: Path | None) -> None:
    """Write all outcomes; does nothing without a file."""
    if file is not None:
        write_whole(file, json.dumps([asdict(one) for one in outcomes], indent=2))
