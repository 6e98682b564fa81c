"""A process that works on a study with an arena whose answer is known: `python -m tests.integration.tuning_worker`.

    URL NAME N_TRIALS [STUCK_AFTER]

Opens the study, says so, and prints a line for each trial that it begins and ends. It waits for a line (or the end) of
its input before it searches, and once more after its first trial. No block ends after the trial STUCK_AFTER, so that a
test can kill it in the middle of one.
"""

from __future__ import annotations

import sys
import time

from muai_lab.garbage import collect_rarely
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.bench import Bench, Switch
from muai_lab.tuning.objective import objectives_of
from muai_lab.tuning.problem import TuningProblem
from muai_lab.tuning.search import Search, SearchBudget
from muai_lab.tuning.space_file import space_of
from muai_lab.tuning.study import Draft, TuningStudy
from muai_lab.tuning.trials import Standing, TrialRecord
from tests.unit.tuning_fakes import FakeArena

SIZE, HOLD = "optimization.batcher.max_batch_size", "optimization.batcher.batch_timeout_ms"
SPACE = space_of({SIZE: {"low": 1, "high": 64, "log": True}, HOLD: {"low": 0, "high": 100, "step": 5}})
PRESENT = OptimizationSettings()
PROBLEM = TuningProblem(SPACE, PRESENT, objectives_of(LabSettings.model_validate({"slo": {"ttft_ms": 500.0}})))


def share(optimization: OptimizationSettings) -> float:
    """Best at 8 sequences without a hold."""
    batcher = optimization.batcher
    return max(0.9 - 0.1 * abs(batcher.max_batch_size.bit_length() - 4) - 0.002 * batcher.batch_timeout_ms, 0.05)


def open_study(url: str, name: str) -> TuningStudy:
    """The study that all processes of a test share."""
    return TuningStudy.open(url, name, {"of": "a test"}, PROBLEM, startup_trials=4)


class Printing:
    """A line for each trial."""

    def __init__(self, arena: FakeArena, stuck_after: int | None) -> None:
        self._arena, self._stuck_after, self._first = arena, stuck_after, True

    def begins(self, draft: Draft) -> None:
        print(f"begins {draft.trial.number}", flush=True)  # noqa: T201 (the test reads it)

    def ended(self, record: TrialRecord, best: Standing | None, done: int) -> None:
        print(f"ended {record.number} {record.outcome}", flush=True)  # noqa: T201 (the test reads it)
        if record.number == self._stuck_after:
            self._arena.after_block = lambda: time.sleep(10_000.0)
        if self._first:
            self._first = False
            sys.stdin.readline()


def main() -> None:
    collect_rarely()
    url, name, n_trials, *stuck_after = sys.argv[1:]
    arena = FakeArena(share, noise=0.005)
    plan = SearchBudget(
        n_trials=int(n_trials), timeout_s=None, patience=99, startup_trials=4, incumbent_every=8, pruning=True
    )
    study = open_study(url, name)
    print("opened", flush=True)  # noqa: T201 (the test reads it)
    sys.stdin.readline()
    printing = Printing(arena, int(stuck_after[0]) if stuck_after else None)
    Search(study, Bench(PROBLEM, arena, Switch(), 3), plan, printing).run()


if __name__ == "__main__":
    main()
