"""The interface by which a tuning reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from muai_lab.tuning.confirmation import ConfirmationWatcher
from muai_lab.tuning.contribution import Contribution
from muai_lab.tuning.search import SearchWatcher
from muai_lab.tuning.study import Draft
from muai_lab.tuning.trials import Standing, TrialRecord


class TuneWatcher(SearchWatcher, ConfirmationWatcher, Protocol):
    """Follows a tuning."""

    def stage(self, what: str) -> None:
        """A new stage began, such as `searching on onnx`."""

    def tried(self, contribution: Contribution) -> None:
        """A changed key was measured by itself."""


class Noting:
    """Passes the reports of a search on, and notes the best when it changes."""

    def __init__(self, watcher: SearchWatcher, note: Callable[[Standing], None]) -> None:
        self._watcher = watcher
        self._note = note
        self._best: int | None = None

    def begins(self, draft: Draft) -> None:
        self._watcher.begins(draft)

    def ended(self, record: TrialRecord, best: Standing | None, done: int) -> None:
        self._watcher.ended(record, best, done)
        if best is not None and best.number != self._best:
            self._best = best.number
            self._note(best)
