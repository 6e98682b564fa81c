"""What a stack tells about itself."""

from __future__ import annotations

from dataclasses import dataclass

from muai_lab.engines.base import EngineInfo
from muai_lab.models.registry import ModelSource


@dataclass(frozen=True, slots=True)
class StackInfo:
    """What serves: recorded with every result. skipped: engines that were preferred, and why they do not serve."""

    model: str
    source: ModelSource
    engine: EngineInfo
    skipped: tuple[tuple[str, str], ...]
    queue_capacity: int | None


@dataclass(frozen=True, slots=True)
class StackCounts:
    """Requests waiting for admission, sequences running, and slots there are."""

    waiting: int
    running: int
    slots: int
