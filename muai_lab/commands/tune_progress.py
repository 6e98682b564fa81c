"""How a tuning gets on, one line for each thing that happened, and how long it may still take."""

from __future__ import annotations

import time

from rich.console import Console

from muai_lab.analysis.wording import number, percent
from muai_lab.settings.catalogue import show
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.tuning import TuningSettings
from muai_lab.tuning.block import attainment
from muai_lab.tuning.confirmation import Pair
from muai_lab.tuning.contribution import Contribution
from muai_lab.tuning.objective import objectives_of
from muai_lab.tuning.search_space import Point
from muai_lab.tuning.study import Draft
from muai_lab.tuning.trials import Standing, TrialRecord

_KINDS = {"present": "present configuration", "random": "random", "search": "proposed", "again": "best so far, again"}
# What a block takes beyond its load (the last answers), and a start of the embedded model's server; for the forecast
# before anything was measured.
_BLOCK_END_S, _START_S = 0.5, 6.0


class TuneProgress:
    """Prints to a console; see `TuneWatcher`. Raises RunError for goodput without a promise."""

    def __init__(self, console: Console, settings: LabSettings) -> None:
        self._console = console
        self._tuning = settings.tuning
        self._objective = objectives_of(settings)[0]
        self._promised = (settings.slo.ttft_ms, settings.slo.tpot_ms, settings.slo.e2e_ms) != (None, None, None)
        self._began = time.monotonic()
        self._ended: list[float] = []  # seconds of the trials that this process has measured
        self._confirming: float | None = None

    def stage(self, what: str) -> None:
        self._say(f"{what} …", "dim")

    def begins(self, draft: Draft) -> None:
        self._say(f"trial {draft.trial.number} ({_KINDS[draft.kind]}): {_short(draft.point)} …", "dim")

    def ended(self, record: TrialRecord, best: Standing | None, done: int) -> None:
        if record.outcome in ("repeated", "lost"):
            return
        value = "" if record.values is None else f" {number(record.values[0])} {self._objective.unit}"
        told = f"trial {record.number}: {record.outcome}{value if record.blocks else ''}"
        if self._promised and record.blocks:
            told += f", promise kept by {percent(attainment(record.blocks))}"
        if record.reason:
            told += f" ({' '.join(record.reason.split())[:160]})"
        if best is not None and best.number != record.number:
            told += f"; best {number(best.value)} (trial {best.number})"
        if record.outcome in ("measured", "pruned"):
            told += f"; {record.seconds:.1f} s, of which {record.overhead_s:.2f} s neither load nor start"
            self._ended.append(record.seconds)
        self._say(told)
        left = self._tuning.n_trials - done
        if record.outcome in ("measured", "pruned") and left > 0:
            self._say(f"{done} of at most {self._tuning.n_trials} trials; {self._left(left)}", "dim")

    def tried(self, contribution: Contribution) -> None:
        gain = "" if contribution.gain is None else f" {contribution.gain:+.1%}"
        change = f"{show(contribution.before)} -> {show(contribution.after)}"
        self._say(f"{contribution.path}: {change}:{gain} {contribution.reason}")
        self._confirming = time.monotonic()

    def compared(self, number: int, of: int, pair: Pair) -> None:
        told = f"pair {number} of {of}: {pair.gain:+.1%}"
        if number < of and self._confirming is not None:
            each_s = (time.monotonic() - self._confirming) / number
            told += f"; about {_about(each_s * (of - number))} left"
        self._say(told)

    def _left(self, trials: int) -> str:
        """The time that so many trials may take, by the mean of those that are over."""
        left_s = trials * sum(self._ended) / len(self._ended)
        if self._tuning.timeout_s is not None:
            left_s = min(left_s, max(self._tuning.timeout_s - (time.monotonic() - self._began), 0.0))
        return f"at most about {_about(left_s)} of search left on this engine"

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def forecast(tuning: TuningSettings) -> str:
    """What a tuning will take at most, before anything is known of the machine."""
    trial_s = tuning.blocks * (tuning.lead_in_s + tuning.block_s + _BLOCK_END_S)
    search_s = tuning.n_trials * (trial_s + _START_S + tuning.warmup_s)
    if tuning.timeout_s is not None:
        search_s = min(search_s, tuning.timeout_s)
    told = (
        f"at most {tuning.n_trials} trials for each engine, {trial_s:.0f} s of load each and a start where it needs "
        f"one: up to about {_about(search_s)}, less as trials are given up early or nothing gets better"
    )
    if tuning.confirm:
        pair_s = 2 * (trial_s + _START_S + tuning.warmup_s)
        told += (
            f"; then each change is looked at by itself ({_about(2 * trial_s)} to {_about(4 * trial_s)} each), and the "
            f"winner confirmed in about {_about(tuning.confirm_pairs * pair_s)}, up to "
            f"{_about(tuning.most_pairs * pair_s)} where the runs scatter"
        )
    return told


def _about(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _short(point: Point) -> str:
    return ", ".join(f"{path.removeprefix('optimization.')}={show(value)}" for path, value in point.items())
