"""How a tuning gets on, one line for each thing that happened."""

from __future__ import annotations

from rich.console import Console

from muai_lab.analysis.wording import number
from muai_lab.settings.catalogue import show
from muai_lab.tuning.confirmation import Pair
from muai_lab.tuning.contribution import Contribution
from muai_lab.tuning.search_space import Point
from muai_lab.tuning.study import Draft
from muai_lab.tuning.trials import Standing, TrialRecord

_KINDS = {"present": "present configuration", "random": "random", "search": "proposed", "again": "best so far, again"}


class TuneProgress:
    """Prints to a console; see `TuneWatcher` for when it is told what."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def stage(self, what: str) -> None:
        self._say(f"{what} …", "dim")

    def begins(self, draft: Draft) -> None:
        self._say(f"trial {draft.trial.number} ({_KINDS[draft.kind]}): {_short(draft.point)} …", "dim")

    def ended(self, record: TrialRecord, best: Standing | None) -> None:
        if record.outcome in ("repeated", "lost"):
            return
        value = "" if record.values is None else f" {number(record.values[0])}"
        told = f"trial {record.number}: {record.outcome}{value}"
        if record.reason:
            told += f" ({' '.join(record.reason.split())[:160]})"
        if best is not None:
            told += f"; best {number(best.value)} (trial {best.number})"
        if record.outcome in ("measured", "pruned"):
            told += f"; {record.seconds:.1f} s, of which {record.overhead_s:.2f} s neither load nor start"
        self._say(told)

    def tried(self, contribution: Contribution) -> None:
        gain = "" if contribution.gain is None else f" {contribution.gain:+.1%}"
        change = f"{show(contribution.before)} -> {show(contribution.after)}"
        self._say(f"{contribution.path}: {change}:{gain} {contribution.reason}")

    def compared(self, number: int, of: int, pair: Pair) -> None:
        self._say(f"pair {number} of {of}: {pair.gain:+.1%}")

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _short(point: Point) -> str:
    return ", ".join(f"{path.removeprefix('optimization.')}={show(value)}" for path, value in point.items())
