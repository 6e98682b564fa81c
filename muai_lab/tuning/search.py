"""The search: ask for a point, measure it, report the outcome, until there is a reason to stop."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from muai_lab.errors import RunError, SettingsError
from muai_lab.settings.changes import with_values
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.settings.tuning import TuningSettings
from muai_lab.tuning.agreement import Agreement, not_kept
from muai_lab.tuning.arena import ConfigurationFailed
from muai_lab.tuning.bench import Bench, GiveUp, Interrupted, Measurement, Unmeasurable
from muai_lab.tuning.block_result import BlockResult, attainment
from muai_lab.tuning.problem import Rejection
from muai_lab.tuning.pruning import Incumbent, behind, slo_lost
from muai_lab.tuning.quality import of_outputs
from muai_lab.tuning.search_space import Point, every_point
from muai_lab.tuning.slo_proof import Soaks
from muai_lab.tuning.study import Draft, TuningStudy
from muai_lab.tuning.trials import (
    TOOK_TIME,
    Standing,
    TrialNoise,
    TrialRecord,
    budget_used,
    noise_of,
    point_key,
    standings,
    trials_without_gain,
)
from muai_lab.wording import plural

# If this number of configurations crash, the first among them, the machine or the model is at fault.
_CRASHES = 5
# After this number of known points in a row the search proposes a new one instead of the sampler.
_REPEATS = 3
_REJECTIONS = 200
# Configurations that noise alone could have put behind the best are measured again before one of them is chosen.
_FINALISTS = 3


class EngineUnmeasurable(RunError):
    """An engine cannot be searched here: its present configuration fails, or every one does."""


class SearchWatcher(Protocol):
    """Follows a search."""

    def begins(self, draft: Draft) -> None:
        """A trial is about to be measured."""

    def ended(self, record: TrialRecord, best: Standing | None, done: int) -> None:
        """A trial has ended. best: The best so far. done: Trials of the study that count towards its budget."""


@dataclass(frozen=True, slots=True)
class SearchBudget:
    """The length of a search, and which trials it repeats or prunes; as in `TuningSettings`."""

    n_trials: int
    timeout_s: float | None
    patience: int
    startup_trials: int
    incumbent_every: int
    pruning: bool

    @classmethod
    def of(cls, tuning: TuningSettings) -> SearchBudget:
        """Return the budget of the settings."""
        return cls(**{name: getattr(tuning, name) for name in cls.__slots__})


class Search:
    """Works on a study until it is done; other processes may work on the same one."""

    def __init__(
        self,
        study: TuningStudy,
        bench: Bench,
        budget: SearchBudget,
        watcher: SearchWatcher,
        *,
        soaks: Soaks | None = None,
        fixed_load: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a search.

        Args:
            study: Asks for points and keeps the trials.
            bench: Measures them. For an SLO under open-loop load each trial is one soak window, warm and without a
                drain between its blocks.
            budget: Length of the search.
            watcher: Follows it.
            soaks: Long soak windows of the study, for an SLO under open-loop load.
            fixed_load: True if the same requests are due whatever serves them.
            clock: Monotonic seconds.
        """
        self._study = study
        self._bench = bench
        self._problem = bench.problem
        self._objective = bench.problem.objective
        self._budget = budget
        self._watcher = watcher
        self._soaks = soaks
        self._fixed_load = fixed_load
        self._clock = clock
        self._began = clock()
        self._repeats = 0
        self._rejections = 0

    def run(self) -> str:
        """Search; return the reason why it stopped.

        Raises:
            Interrupted: A stop was requested.
            EngineUnmeasurable: The present configuration cannot be measured, or none serves.
        """
        while (reason := self._stop_reason()) is None:
            self._bench.switch.check()
            self._keep_measuring_the_best()
            self._one()
        if again := self._run_off():
            reason += f"; then what was close to the best was measured again ({plural(again, 'trial')})"
        return reason

    def best(self) -> Standing | None:
        """Return the best configuration so far; None if none was measured to the end."""
        return next(iter(standings(self._study.records(), self._objective)), None)

    def noise(self) -> TrialNoise:
        """Return the noise of measurements of one configuration."""
        return noise_of(self._study.records(), self._objective)

    def _one(self) -> TrialRecord:
        draft = self._study.ask()
        record = TrialRecord(draft.trial.number, draft.kind, "lost", draft.point, None, {})
        began = time.perf_counter()
        try:
            record = self._outcome(draft, record)
        except Interrupted:
            self._study.finish(draft, replace(record, reason="interrupted"))
            if draft.kind in ("present", "again"):
                self._study.ask_for(draft.point, draft.kind)
            raise
        record = replace(record, seconds=time.perf_counter() - began)
        self._study.finish(draft, record)
        self._watcher.ended(record, self.best(), budget_used(self._study.records()))
        self._check_start(record)
        return record

    def _outcome(self, draft: Draft, record: TrialRecord) -> TrialRecord:
        """Measure the point, unless something speaks against it."""
        if draft.kind in ("random", "search"):
            first = self._study.measured_points().get(record.key, record.number)
            if first != record.number:
                self._repeats += 1
                return replace(record, outcome="repeated", reason=f"the same point as trial {first}")
            self._repeats = 0
            if (rejection := self._known_to_differ(draft.point)) is not None:
                return self._rejected(record, rejection)
        try:
            optimization = with_values(self._problem.present, draft.point)
        except SettingsError as error:
            return self._rejected(record, Rejection("serves", 1.0, "; ".join(error.problems)))
        if draft.kind != "present" and (rejection := self._problem.screen(optimization)) is not None:
            return self._rejected(record, rejection)
        self._rejections = 0
        self._watcher.begins(draft)
        try:
            with self._study.leased(draft):
                found = self._measure(draft, optimization)
        except ConfigurationFailed as error:
            violations = self._problem.constraints.of_failure("serves")
            return replace(record, outcome="crashed", values=self._worst(), violations=violations, reason=str(error))
        except Unmeasurable as error:
            return replace(record, outcome="unmeasurable", reason=str(error))
        return replace(
            record,
            outcome="measured" if found.given_up is None else "pruned",
            values=tuple(objective.value(found.blocks) for objective in self._problem.objectives),
            violations=self._problem.constraints.violations(found.blocks, found.agreement, growing=found.growing),
            blocks=tuple(found.blocks),
            reason=found.given_up or ("the backlog grew" if found.growing else None),
            agreement=found.agreement,
            restarted=found.restarted,
            load_s=found.load_s,
            start_s=found.start_s,
        )

    def _measure(self, draft: Draft, optimization: OptimizationSettings) -> Measurement:
        known = self._known_agreement(draft.point)
        found = self._bench.run(
            optimization,
            give_up=self._give_up(draft),
            wants_agreement=self._problem.constraints.min_agreement is not None and known is None,
        )
        found.agreement = found.agreement or known
        return found

    def _known_to_differ(self, point: Point) -> Rejection | None:
        """Reject a point whose data type and quantisation changed too many tokens in an earlier trial."""
        least, known = self._problem.constraints.min_agreement, self._known_agreement(point)
        if least is None or (reason := not_kept(known, least)) is None:
            return None
        assert known is not None, "an unknown agreement is not rejected"
        return Rejection("agreement", 1.0 - known.low / least, f"as an earlier trial showed, {reason}")

    def _known_agreement(self, point: Point) -> Agreement | None:
        """The comparison of an earlier trial with the same data types and quantisation."""
        outputs = of_outputs(point)
        seen = (trial for trial in self._study.records() if of_outputs(trial.point) == outputs)
        return next((trial.agreement for trial in seen if trial.agreement is not None), None)

    def _rejected(self, record: TrialRecord, rejection: Rejection) -> TrialRecord:
        self._rejections += 1
        violations = self._problem.constraints.of_failure(rejection.constraint, rejection.excess)
        return replace(record, outcome="rejected", values=self._worst(), violations=violations, reason=rejection.reason)

    def _worst(self) -> tuple[float, ...]:
        return tuple(objective.worst for objective in self._problem.objectives)

    def _give_up(self, draft: Draft) -> GiveUp:
        """The rule that prunes a trial. The present configuration and the best so far are always measured whole."""
        best = self.best()
        if not self._budget.pruning or best is None or draft.kind in ("present", "again"):
            return lambda blocks: None
        incumbent = Incumbent(
            per_block=best.per_block,
            due=[block.due for block in best.runs[0].blocks],
            noise=self.noise().block,
            keeps_slo=best.feasible,
        )

        def give_up(blocks: Sequence[BlockResult]) -> str | None:
            quantile = self._problem.constraints.quantile
            lost = None
            if incumbent.keeps_slo and quantile is not None:
                lost = slo_lost(blocks, incumbent, quantile)
            # With several objectives, worse in one may be better in another.
            if lost is not None or len(self._problem.objectives) > 1:
                return lost
            return behind(self._objective, blocks, incumbent)

        return give_up

    def _keep_measuring_the_best(self) -> None:
        """Queue the best so far again at regular intervals; the present configuration right after its first trial."""
        trials = self._study.records()
        best = next(iter(standings(trials, self._objective)), None)
        if best is None:
            return
        new = 0
        for trial in trials:
            if trial.kind == "again":
                new = 0
            elif trial.outcome in TOOK_TIME:
                new += 1
        if new >= self._budget.incumbent_every or not any(trial.kind == "again" for trial in trials):
            self._study.ask_for(best.point, "again", of=best.number)

    def _run_off(self) -> int:
        """Repeat configurations that noise alone could have put behind the best, or before it; return their number."""
        objective = self._objective
        for done in range(_FINALISTS):
            found = standings(self._study.records(), objective)
            margin = 2.0 * self.noise().run
            close = [
                one
                for one in found[:_FINALISTS]
                if one.feasible == found[0].feasible and objective.gain(found[0].value, one.value) <= margin
            ]
            once = [one for one in close if len(one.runs) == 1]
            if not once:
                return done
            self._study.ask_for(once[0].point, "again", of=once[0].number)
            self._one()
        return _FINALISTS

    def _stop_reason(self) -> str | None:
        plan = self._budget
        trials = self._study.records()
        used = budget_used(trials)
        if used >= plan.n_trials:
            return f"all {plural(plan.n_trials, 'trial')} are used up (tuning.n_trials)"
        elapsed_s = self._clock() - self._began
        if plan.timeout_s is not None and elapsed_s >= plan.timeout_s:
            return f"{elapsed_s:.0f} s have passed (tuning.timeout_s)"
        noise = self.noise().run
        without = trials_without_gain(trials, self._objective, noise)
        if without >= plan.patience and used > plan.startup_trials:
            return f"none of the last {without} configurations gained more than twice the noise ({2 * noise:.1%})"
        if (all_kept := self._nothing_to_gain()) is not None:
            return all_kept
        if self._rejections >= _REJECTIONS:
            return f"{self._rejections} configurations in a row were refused by calculation"
        if self._repeats >= _REPEATS and not self._queue_an_unknown_point():
            return "every point of the space was measured"
        return None

    def _nothing_to_gain(self) -> str | None:
        """The reason why no configuration can be better by more than the noise: the best keeps the SLO for all load."""
        best = self.best()
        if not self._fixed_load or [one.name for one in self._problem.objectives] != ["goodput"]:
            return None
        if best is None or not best.feasible or len(best.runs) < 2:
            return None
        kept = attainment([block for run in best.runs for block in run.blocks])
        if self._soaks is not None and 1.0 - kept <= self.noise().run:
            kept = self._soaks.kept_by(best.point)
        if 1.0 - kept > self.noise().run:
            return None
        return (
            f"{kept:.1%} of the offered requests ({best.value:.3g} a second) meet the SLO, so that no configuration "
            "can do better by more than the noise: raise arrival.rate, or use arrival=closed"
        )

    def _queue_an_unknown_point(self) -> bool:
        """Queue the point nearest to the best so far that was not measured; return False if none is left.

        In a space that is too large to list, the sampler is left alone: it finds new points by itself.
        """
        self._repeats = 0
        points = list(every_point(self._problem.space, self._problem.present))
        known = self._study.measured_points()
        unknown = [point for point in points if point_key(point) not in known]
        best = self.best()
        if not unknown or best is None:
            return not points
        steps = [self._problem.space.steps_between(point, best.point) for point in unknown]
        nearest = [point for point, step in zip(unknown, steps, strict=True) if step == min(steps)]
        self._study.ask_for(random.Random(len(known)).choice(nearest), "search")
        return True

    def _check_start(self, record: TrialRecord) -> None:
        """Raise EngineUnmeasurable if further trials are useless."""
        if record.kind == "present" and record.outcome in ("crashed", "unmeasurable"):
            advice = (
                "lower arrival.rate or arrival.concurrency, or end what else keeps this machine busy"
                if record.outcome == "unmeasurable"
                else "mend it first; `run` with the same arguments shows more"
            )
            raise EngineUnmeasurable(f"the present configuration cannot be measured: {record.reason}; {advice}")
        ended = [trial for trial in self._study.records() if trial.outcome in (*TOOK_TIME, "unmeasurable")]
        if len(ended) >= _CRASHES and all(trial.outcome in ("crashed", "unmeasurable") for trial in ended):
            raise EngineUnmeasurable(
                f"the first {len(ended)} configurations could not be measured; the last: {record.reason}"
            )
