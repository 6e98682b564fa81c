"""Who is told how a tuning gets on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.confirmation import Pair
from muai_lab.tuning.contribution import Contribution
from muai_lab.tuning.search import SearchWatcher
from muai_lab.tuning.study import Draft
from muai_lab.tuning.trials import Standing, TrialRecord


class TuneWatcher(SearchWatcher, Protocol):
    """Is told how the tuning gets on."""

    def stage(self, what: str) -> None:
        """A new stage began, such as `searching on onnx`."""

    def tried(self, contribution: Contribution) -> None:
        """A changed key was looked at by itself."""

    def agreed(self, agreement: Agreement) -> None:
        """The greedy tokens of the winner were compared with those of fp32."""

    def compared(self, number: int, of: int, pair: Pair) -> None:
        """A pair of the confirmation is done. of: how many there are to be, which may become more."""


class Noting:
    """Passes on what the search says, and keeps the best whenever it changes."""

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
