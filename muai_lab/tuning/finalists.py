"""From finished searches to the configuration that is confirmed: the best that keeps the SLO in its soak window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from muai_lab.experiment.worker import is_gone, worker
from muai_lab.settings.schema import EngineName
from muai_lab.tuning.arena import ConfigurationFailed
from muai_lab.tuning.bench import Unmeasurable
from muai_lab.tuning.block_result import attainment
from muai_lab.tuning.objective import Constraints, Objective
from muai_lab.tuning.problem import TuningProblem
from muai_lab.tuning.result import EngineStudy
from muai_lab.tuning.slo_proof import Soaks
from muai_lab.tuning.soak import Soak
from muai_lab.tuning.study import TuningStudy
from muai_lab.tuning.trials import Standing, budget_used, standings

_CLAIM = "finisher"


@dataclass(frozen=True, slots=True)
class Searched:
    """A finished search. stopped: The reason why it stopped. soaks: None without soak windows."""

    engine: EngineName
    study: TuningStudy
    stopped: str
    soaks: Soaks | None = None

    @property
    def problem(self) -> TuningProblem:
        """The problem that was searched."""
        return self.study.problem

    def best(self) -> Standing | None:
        """The best configuration that keeps the SLO in its soak window; the best of the trials if none does."""
        found = standings(self.study.records(), self.problem.objective)
        kept = None if self.soaks is None else self.soaks.first_kept(found)
        return kept or next(iter(found), None)

    def soak_missed(self, best: Standing | None) -> bool:
        """True if the SLO is judged by soak windows and this configuration does not keep it in one."""
        if self.soaks is None or best is None:
            return False
        seen = self.soaks.known(best.point)
        return seen is None or not self.soaks.keeps(seen)

    def soak_s(self, best: Standing) -> float | None:
        """Length of the soak window of a configuration, and of those that follow; None without soak windows."""
        seen = None if self.soaks is None else self.soaks.known(best.point)
        return None if seen is None else seen.seconds

    @property
    def constraints_of_trials(self) -> Constraints:
        """The constraints that trials judge: a soak window judges the SLO better than they do."""
        constraints = self.problem.constraints
        return constraints if self.soaks is None else replace(constraints, quantile=None)

    def summary(self) -> EngineStudy:
        """The search as the result lists it."""
        best = self.best()
        return EngineStudy(
            self.engine,
            self.study.name,
            budget_used(self.study.records()),
            self.stopped,
            None if best is None else best.value,
            None if best is None else best.number,
            best is not None and best.feasible and not self.soak_missed(best),
        )


def best_of(searches: Sequence[Searched], objective: Objective) -> tuple[Searched, Standing] | None:
    """Return the best configuration of all engines: one that keeps the SLO in its soak window comes first."""
    found = [(searched, best) for searched in searches if (best := searched.best()) is not None]
    if not found:
        return None
    sign = -1.0 if objective.larger_is_better else 1.0
    return min(found, key=lambda one: (one[0].soak_missed(one[1]), max(one[1].violation, 0.0), sign * one[1].value))


def hoped_gain(searched: Searched | None, best: Standing, objective: Objective) -> float | None:
    """Return the gain over the present configuration that the searches show.

    searched: The search on the engine that serves today; None if there was none. Returns None if the present
    configuration was not measured.
    """
    for standing in standings(searched.study.records(), objective) if searched is not None else ():
        if any(run.kind == "present" for run in standing.runs):
            return objective.gain(best.value, standing.value)
    return None


def claimed_by_another(study: TuningStudy) -> str | None:
    """Claim the end of the study, which is for the first of its processes to finish; None if this one has it."""
    claim = study.noted(_CLAIM)
    if claim is not None and claim != worker() and not is_gone(claim):
        return f"another process of the study confirms it (on {claim['host']})"
    study.note(_CLAIM, worker())
    return None


def what_keeps_the_slo(soaks: Soaks, best: Standing, rate: float | None) -> tuple[str, str]:
    """Report that nothing keeps the SLO, and the highest rate at which the best configuration does.

    Args:
        soaks: On an arena that serves. Lower rates are probed there.
        best: The best configuration.
        rate: The configured rate in requests per second; None if it changes by itself.

    Returns:
        The reason in one line, and what was missed by how much.

    Raises:
        Interrupted: A stop was requested.
    """
    reason = "nothing keeps the SLO at this rate"
    try:
        seen = soaks.look(best.point)
        missed = f"no configuration keeps the SLO: of the best, {_in_words(seen, soaks.quantile)}"
        if rate is None:
            return f"{reason}; the best configuration ended {seen.completed_per_s:.3g} requests per second", missed
        return f"{reason}; {soaks.highest_rate(best.point, rate, seen)}", missed
    except (ConfigurationFailed, Unmeasurable) as error:
        return f"{reason}, and lower rates could not be probed ({error})", "no configuration keeps the SLO"


def _in_words(seen: Soak, quantile: float) -> str:
    grew = f", and the backlog grew by {seen.backlog:.0f} requests" if seen.growing else ""
    told = (
        f"{attainment(seen.slices):.1%} of the requests met it in a soak window of {seen.seconds:.0f} s{grew}; "
        f"{quantile:.1%} are asked for"
    )
    if seen.long_enough:
        return told
    return f"{told}; its queue remembers so long that {seen.needed_s:.0f} s would be needed (tuning.soak_most_s)"
