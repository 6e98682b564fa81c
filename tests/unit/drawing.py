"""Drawing small schedules from files that the tests write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muai_lab.settings.lab import LabSettings
from muai_lab.workload.draw import draw_schedule
from muai_lab.workload.schedule import Schedule
from tests.unit.word_tokenizer import WordTokenizer


def draw(
    workload: dict[str, Any],
    *,
    arrival: dict[str, Any] | None = None,
    load: dict[str, Any] | None = None,
    context_tokens: int | None = None,
    seed: int = 0,
) -> Schedule:
    """A schedule of a closed loop with 5 requests, unless it is said otherwise."""
    settings = LabSettings.model_validate(
        {
            "seed": seed,
            "workload": workload,
            "arrival": arrival or {"kind": "closed"},
            "load": load or ({"requests": 5} if arrival is None else {"warmup_s": 0.0, "duration_s": 100.0}),
        }
    )
    return draw_schedule(settings, WordTokenizer(), context_tokens)


def written(path: Path, *lines: str, end: str = "\n") -> str:
    """A file of these lines; its path as a setting."""
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    return str(path)
