"""What a tuning says while it goes on: one numbering of trials, missed bounds, and times that are corrected."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from muai_lab.commands.tune_progress import TuneProgress
from muai_lab.settings.lab import LabSettings
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.block_result import BlockResult
from muai_lab.tuning.confirmation import Pair
from muai_lab.tuning.forecast import Forecast, about, first_forecast
from muai_lab.tuning.objective import objectives_of
from muai_lab.tuning.trials import Standing, TrialOutcome, TrialRecord, budget_used, standings, tally

SETTINGS = LabSettings.model_validate(
    {
        "slo": {"ttft_ms": 500},
        "tuning": {"n_trials": 10, "blocks": 2, "block_s": 4.0, "lead_in_s": 0.5, "warmup_s": 3.0},
    }
)
GOODPUT = objectives_of(SETTINGS)[0]
PAIR = Pair(10.0, 11.0, 0.1, ((10.0, 11.0),), winner_first=False)


def trial(number: int, outcome: TrialOutcome = "measured", *, met: int = 100, seconds: float = 12.0) -> TrialRecord:
    blocks = (BlockResult(4.0, 100, met, 0, 1000.0),) if outcome in ("measured", "pruned") else ()
    return TrialRecord(
        number, "search", outcome, {"size": number}, (met / 4.0,) if blocks else None,
        {"promise": (0.99 - met / 100) / 0.99}, blocks, seconds=seconds, load_s=10.0, start_s=1.0, restarted=True,
    )  # fmt: skip


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Log:
    """A tuning's progress and what it printed."""

    def __init__(self, settings: LabSettings = SETTINGS) -> None:
        self.clock = Clock()
        self._text = io.StringIO()
        self.progress = TuneProgress(Console(file=self._text, width=300), settings, clock=self.clock)

    def ends(self, record: TrialRecord, best: Standing | None = None, done: int = 1) -> list[str]:
        self.progress.ended(record, best, done)
        return self.lines()

    def lines(self) -> list[str]:
        return self._text.getvalue().splitlines()


def test_a_missed_bound_is_in_the_line_of_its_trial_and_of_the_best() -> None:
    best = standings([trial(2, met=97)], GOODPUT)[0]

    first, _ = Log().ends(trial(3, met=93), best)

    assert first.startswith("trial 3: measured to the end 23.2 requests/s, SLO met by 93 %, MISSES A BOUND (SLO)")
    assert "best 24.2 (trial 2, misses a bound)" in first


def test_the_agreement_with_fp32_is_in_the_line_of_the_trial_and_told_for_the_winner() -> None:
    log, found = Log(), Agreement(0.93, 0.91, 1500, 1436, 64)

    first, _ = log.ends(replace(trial(3), agreement=found))
    log.progress.agreed(found)

    assert ", agreement 93.0% (at least 91.0%)" in first
    assert log.lines()[-1] == f"the winner: {found}"


def test_a_trial_that_keeps_every_bound_says_nothing_of_them() -> None:
    first, _ = Log().ends(trial(3))

    assert "BOUND" not in first


@pytest.mark.parametrize("outcome", ["measured", "pruned", "crashed"])
def test_every_trial_that_counts_is_counted_in_the_log(outcome: TrialOutcome) -> None:
    assert any(line.startswith("4 of at most 10 trials") for line in Log().ends(trial(7, outcome), done=4))


def test_log_table_and_page_count_the_same_trials() -> None:
    outcomes: list[TrialOutcome] = ["measured", "pruned", "crashed", "rejected", "repeated", "unmeasurable", "lost"]
    trials = [trial(number, outcome) for number, outcome in enumerate([*outcomes, "measured"])]

    assert budget_used(trials) == 4
    assert tally(trials) == (
        "4 trials: 2 measured to the end, 1 pruned, 1 did not serve; "
        "besides 1 could not be measured, 1 refused by calculation, 1 the same as another, 1 lost"
    )
    assert tally([]) == "0 trials"


def test_the_time_of_the_search_follows_what_trials_took() -> None:
    # Given settings by which a trial takes 19 s
    assert Forecast(SETTINGS.tuning).search_s(10) == pytest.approx(190.0)

    # When the first also pays for what is done once, then the rest is told by its load and its start
    log = Log()
    assert "up to about 2 min of search left" in log.ends(trial(0, seconds=600.0))[-1]

    # And when later ones take 60 s, then by these
    assert "up to about 8 min of search left" in log.ends(trial(1, seconds=60.0), done=2)[-1]


def test_the_time_left_is_never_more_than_the_timeout_leaves() -> None:
    forecast = Forecast(SETTINGS.tuning.model_copy(update={"timeout_s": 100.0}))

    assert forecast.search_s(10, elapsed_s=70.0) == pytest.approx(30.0)
    assert forecast.search_s(10, elapsed_s=700.0) == 0.0


def test_the_time_of_the_confirmation_follows_its_pairs_even_without_a_look_at_single_changes() -> None:
    log = Log()
    log.progress.stage("confirming the winner")
    log.clock.now = 40.0
    log.progress.compared(1, 6, PAIR)
    log.clock.now = 100.0
    log.progress.compared(2, 6, PAIR)
    log.clock.now = 150.0
    log.progress.compared(6, 12, PAIR)

    one, two, six = log.lines()[-3:]
    assert one == "pair 1 of 6: +10.0%; about 3 min left, up to 7 min if the runs scatter"
    assert two == "pair 2 of 6: +10.0%; about 3 min left, up to 8 min if the runs scatter"
    assert six == "pair 6 of 12: +10.0%; about 5 min left"


@given(st.floats(0.0, 1e6))
def test_a_time_is_written_with_at_most_four_digits(seconds: float) -> None:
    assert about(seconds).endswith((" s", " min", " h"))
    assert len(about(seconds).split()[0].replace(".", "")) <= 4


def test_the_first_forecast_is_that_of_the_settings() -> None:
    assert first_forecast(SETTINGS.tuning).startswith(
        "at most 10 trials for each engine, 10 s of load each and a start where it needs one: up to about 3 min"
    )
    unconfirmed = SETTINGS.tuning.model_copy(update={"confirm": False})
    assert "confirmed" not in first_forecast(unconfirmed)


def test_what_says_nothing_is_not_shown() -> None:
    assert Log().ends(trial(3, "repeated")) == []
    assert Log().ends(replace(trial(3, "rejected"), reason="needs 3 GiB"))[0] == (
        "trial 3: refused by calculation (needs 3 GiB)"
    )
