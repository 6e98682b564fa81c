"""The time that a tuning may still take at most: from its settings at first, corrected by every trial and pair."""

from __future__ import annotations

from statistics import fmean

from muai_lab.settings.tuning import TuningSettings
from muai_lab.tuning.contribution import ROUNDS
from muai_lab.tuning.slo_proof import SHORTEST_S
from muai_lab.tuning.soak import LEAD_IN
from muai_lab.tuning.trials import TrialRecord
from muai_lab.wording import plural

# A block's last answers after its load, and a start of the embedded model's server: before anything was measured.
_BLOCK_END_S, _START_S = 0.5, 6.0


class Forecast:
    """Upper limits, seconds. Until a trial was measured to its end, load and starts are taken from the settings.

    soaked: True if trials and runs are soak windows. The windows of the runs are as long as the relaxation time of the
    queue demands; until a pair was measured, the pairs are assumed to have the shortest ones.
    """

    def __init__(self, tuning: TuningSettings, *, soaked: bool = False) -> None:
        self._tuning = tuning
        self._soaked = soaked
        self._trials: list[float] = []
        self._loads: list[float] = []
        self._starts: list[float] = []
        self._pairs: list[float] = []

    def trial_ended(self, record: TrialRecord) -> None:
        """Learn from a trial of this process."""
        if record.outcome not in ("measured", "pruned"):
            return
        self._trials.append(record.seconds)
        if record.outcome == "measured":
            self._loads.append(record.load_s)
        if record.restarted:
            self._starts.append(record.start_s)

    def pair_ended(self, seconds: float) -> None:
        """Learn from a pair of the confirmation."""
        self._pairs.append(seconds)

    @property
    def load_s(self) -> float:
        """The load of one trial that goes to its end."""
        tuning = self._tuning
        asked_s = tuning.blocks * (tuning.lead_in_s + tuning.block_s + _BLOCK_END_S)
        if self._soaked:
            asked_s = self._soak_s(tuning.blocks * tuning.block_s)
        return fmean(self._loads) if self._loads else asked_s

    @property
    def run_s(self) -> tuple[float, float]:
        """The load of one run after the search: shortest and longest."""
        if not self._soaked:
            return self.load_s, self.load_s
        tuning = self._tuning
        shortest_s = tuning.soak_s or min(SHORTEST_S, tuning.soak_most_s)
        return self._soak_s(shortest_s), self._soak_s(tuning.soak_s or tuning.soak_most_s)

    def _soak_s(self, seconds: float) -> float:
        return (1.0 + LEAD_IN) * seconds + _BLOCK_END_S

    @property
    def start_s(self) -> float:
        """One start of the server with its warm-up."""
        return fmean(self._starts) if self._starts else _START_S + self._tuning.warmup_s

    def search_s(self, trials: int, elapsed_s: float = 0.0) -> float:
        """Return the time of further trials on one engine. elapsed_s: Of the search, which tuning.timeout_s counts."""
        # The first trial also has the work that is done once: the fp32 answers for the comparison of tokens.
        later = self._trials[1:]
        each_s = fmean(later) if later else self.load_s + self.start_s
        left_s = trials * each_s
        timeout_s = self._tuning.timeout_s
        return left_s if timeout_s is None else min(left_s, max(timeout_s - elapsed_s, 0.0))

    def change_s(self) -> tuple[float, float]:
        """The measurement of one changed key: shortest and longest, with its part of the comparison with the winner."""
        least_s, most_s = self.run_s
        return ROUNDS * least_s, (2 * ROUNDS + 1) * (most_s + self.start_s)

    def pairs_s(self, pairs: int) -> float:
        """Return the time of further pairs of the confirmation, each with two starts."""
        each_s = fmean(self._pairs) if self._pairs else 2.0 * (self.run_s[0] + self.start_s)
        return pairs * each_s


def about(seconds: float) -> str:
    """`40 s`, `12 min`, `2.5 h`."""
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 5400.0 else f"{seconds / 3600.0:.1f} h"


def first_forecast(tuning: TuningSettings, *, soaked: bool = False) -> str:
    """Describe the time that a tuning takes at most, before any measurement. soaked: See `Forecast`."""
    forecast = Forecast(tuning, soaked=soaked)
    told = (
        f"at most {plural(tuning.n_trials, 'trial')} for each engine, {forecast.load_s:.0f} s of load each and a start "
        f"where it needs one: up to about {about(forecast.search_s(tuning.n_trials))}, less as trials are pruned or "
        "nothing gets better"
    )
    if not tuning.confirm:
        return told
    least_s, most_s = forecast.change_s()
    longer = ""
    if soaked and tuning.soak_s is None:
        longer = f"; near capacity a soak window, and all this with it, takes up to {tuning.soak_most_s:g} s"
    return (
        f"{told}; then each change is measured by itself ({about(least_s)} to {about(most_s)} each), and the winner "
        f"confirmed in about {about(forecast.pairs_s(tuning.confirm_pairs))}, up to "
        f"{about(forecast.pairs_s(tuning.most_pairs))} if the runs scatter{longer}. The figures are corrected as "
        "it goes"
    )
