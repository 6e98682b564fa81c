"""The progress of a tuning, one line per event, with an estimate of the time left."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console

from muai_lab.commands.terminal import say
from muai_lab.settings.catalogue import show
from muai_lab.settings.lab import LabSettings
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.block_result import attainment
from muai_lab.tuning.confirmation import Pair
from muai_lab.tuning.contribution import Contribution
from muai_lab.tuning.forecast import Forecast, about
from muai_lab.tuning.load_blocks import is_soaked
from muai_lab.tuning.objective import has_slo, missed, objectives_of
from muai_lab.tuning.search_space import Point
from muai_lab.tuning.study import Draft
from muai_lab.tuning.trials import OUTCOMES, Standing, TrialRecord
from muai_lab.wording import number, percent, plural

_KINDS = {"present": "present configuration", "random": "random", "search": "proposed", "again": "best so far, again"}


class TuneProgress:
    """Prints to a console; see `TuneWatcher`. Raises RunError for goodput without an SLO.

    clock: monotonic seconds.
    """

    def __init__(self, console: Console, settings: LabSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._tuning = settings.tuning
        self._objective = objectives_of(settings)[0]
        self._has_slo = has_slo(settings.slo)
        self._forecast = Forecast(settings.tuning, soaked=is_soaked(settings))
        self._clock = clock
        self._began = self._mark = clock()  # of the whole, and of the present measurement
        self._searching: float | None = None  # start of the search on the present engine

    @property
    def elapsed(self) -> str:
        """Time since the start, as text."""
        return about(self._clock() - self._began)

    def stage(self, what: str) -> None:
        self._mark = self._clock()
        if what.startswith("searching on "):
            self._searching = self._mark
        self._say(f"{what} …", "dim")

    def begins(self, draft: Draft) -> None:
        self._say(f"trial {draft.trial.number} ({_KINDS[draft.kind]}): {_short(draft.point)} …", "dim")

    def ended(self, record: TrialRecord, best: Standing | None, done: int) -> None:
        if record.outcome in ("repeated", "lost"):
            return
        value = f" {number(record.values[0])} {self._objective.unit}" if record.blocks and record.values else ""
        told = f"trial {record.number}: {OUTCOMES[record.outcome]}{value}"
        if self._has_slo and record.blocks:
            told += f", SLO met by {percent(attainment(record.blocks))}"
        if record.agreement is not None:
            told += f", agreement {record.agreement.share:.1%} (at least {record.agreement.low:.1%})"
        if record.blocks and not record.feasible:
            told += f", MISSES A BOUND ({missed(record.violations)})"
        if record.reason:
            told += f" ({' '.join(record.reason.split())[:160]})"
        if best is not None and best.number != record.number:
            told += f"; best {number(best.value)} (trial {best.number}{'' if best.feasible else ', misses a bound'})"
        if record.outcome in ("measured", "pruned"):
            told += f"; {record.seconds:.1f} s, of which {record.overhead_s:.2f} s neither load nor start"
        self._say(told)
        self._forecast.trial_ended(record)
        if record.blocks or record.outcome == "crashed":
            self._say_what_is_left(done)

    def tried(self, contribution: Contribution) -> None:
        gain = "" if contribution.gain is None else f" {contribution.gain:+.1%}"
        change = f"{show(contribution.before)} -> {show(contribution.after)}"
        self._say(f"{contribution.path}: {change}:{gain} {contribution.reason}")
        self._mark = self._clock()

    def agreed(self, agreement: Agreement) -> None:
        self._say(f"the winner: {agreement}")
        self._mark = self._clock()  # the check is no part of a pair

    def compared(self, number: int, of: int, pair: Pair) -> None:
        now = self._clock()
        self._forecast.pair_ended(now - self._mark)
        self._mark = now
        told = f"pair {number} of {of}: {pair.gain:+.1%}"
        if number < of:
            told += f"; about {about(self._forecast.pairs_s(of - number))} left"
            most = self._tuning.most_pairs
            if number < self._tuning.confirm_pairs < most:
                told += f", up to {about(self._forecast.pairs_s(most - number))} if the runs scatter"
        self._say(told)

    def _say_what_is_left(self, done: int) -> None:
        """Print the time that the rest may take, corrected by the durations of the trials so far."""
        left = self._tuning.n_trials - done
        if left <= 0:
            return
        now = self._clock()
        search_s = self._forecast.search_s(left, now - (self._began if self._searching is None else self._searching))
        most = plural(self._tuning.n_trials, "trial")
        told = f"{done} of at most {most}; up to about {about(search_s)} of search left"
        if self._tuning.confirm:
            least_s, most_s = self._forecast.change_s()
            told += (
                f", then {about(least_s)} to {about(most_s)} for each change and about "
                f"{about(self._forecast.pairs_s(self._tuning.confirm_pairs))} to confirm"
            )
        self._say(told, "dim")

    def _say(self, line: str, style: str = "") -> None:
        say(self._console, line, style)


def _short(point: Point) -> str:
    return ", ".join(f"{path.removeprefix('optimization.')}={show(value)}" for path, value in point.items())
