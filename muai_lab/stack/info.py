"""The facts and the load that a stack reports."""

from __future__ import annotations

from dataclasses import dataclass

from muai_lab.engines.base import EngineInfo
from muai_lab.models.registry import ModelSource


@dataclass(frozen=True, slots=True)
class StackInfo:
    """The serving model and engine, recorded with every result. skipped: preferred engines that do not serve, why."""

    model: str
    source: ModelSource
    engine: EngineInfo
    skipped: tuple[tuple[str, str], ...]
    queue_capacity: int | None


@dataclass(frozen=True, slots=True)
class StackCounts:
    """Requests that wait for admission, sequences that run, and slots of the engine."""

    waiting: int
    running: int
    slots: int
