"""How much each key matters: said only where enough different configurations were measured."""

from __future__ import annotations

import pytest

from muai_lab.settings.lab import LabSettings
from muai_lab.tuning.importance import FEWEST_FOR_A_KEY, importance_of
from muai_lab.tuning.objective import objectives_of
from muai_lab.tuning.space_file import space_of
from muai_lab.tuning.trials import TrialRecord

SIZE, HOLD = "optimization.batcher.max_batch_size", "optimization.batcher.batch_timeout_ms"
SPACE = space_of({SIZE: {"low": 1, "high": 64}, HOLD: {"low": 0, "high": 100}}, "test")
(THROUGHPUT,) = objectives_of(LabSettings.model_validate({"tuning": {"objectives": ("throughput",)}}))


def trials(sizes: range, outcome: str = "measured") -> list[TrialRecord]:
    """Throughput follows the size, whatever the hold."""
    return [
        TrialRecord(number, "search", outcome, {SIZE: size, HOLD: (37 * number) % 100}, (10.0 * size,), {})  # type: ignore[arg-type]
        for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("outcome", ["measured", "pruned"])
def test_the_key_that_decides_comes_first(outcome: str) -> None:
    found = importance_of(trials(range(1, 61, 2), outcome), SPACE, THROUGHPUT)

    assert list(found) == [SIZE, HOLD]
    assert found[SIZE] > 0.6


def test_of_few_configurations_nothing_is_said_however_often_they_were_measured() -> None:
    few = trials(range(1, 2 * FEWEST_FOR_A_KEY))

    assert importance_of(few * 4, SPACE, THROUGHPUT) == {}
