"""The study: trials in Optuna's storage, which several processes measure at once, and any of them may die.

Optuna's own heartbeat works only inside `optimize()`, which is not used here. So each running trial has a lease, a time
that its process renews. When the lease has run out, or the process has ended, the trial is recorded as failed and its
point is queued again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from muai_lab.errors import RunError
from muai_lab.experiment.worker import is_gone, worker
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.block_result import BlockResult
from muai_lab.tuning.identity import Identity, check_same
from muai_lab.tuning.problem import TuningProblem
from muai_lab.tuning.search_space import Value
from muai_lab.tuning.storage import alone, open_storage, storage_errors
from muai_lab.tuning.trials import TrialKind, TrialRecord, point_key

log = logging.getLogger(__name__)

IDENTITY, ASKED, LEASE, WORKER, ENDED = "identity", "asked", "lease", "worker", "ended"
_LEASE_S = 60.0
_RENEW_S = 10.0
# A point may be what kills its process.
_MOST_RETRIES = 2


@dataclass(frozen=True, slots=True)
class Draft:
    """A trial that runs. point: The configuration to measure. kind: The reason for it."""

    trial: optuna.Trial
    point: Mapping[str, Value]
    kind: TrialKind


class TuningStudy:
    """The trials of one problem."""

    def __init__(self, study: optuna.Study, url: str, problem: TuningProblem, startup_trials: int) -> None:
        self.study = study
        self.problem = problem
        self._url = url
        self._startup_trials = startup_trials
        self._read: dict[int, TrialRecord] = {}  # a trial that has ended does not change any more

    @classmethod
    def open(
        cls,
        url: str,
        name: str,
        identity: Identity,
        problem: TuningProblem,
        *,
        sampler: str = "tpe",
        startup_trials: int = 8,
        seed: int = 0,
    ) -> TuningStudy:
        """Make the study, or continue the one of that name. Its first trial is the present configuration.

        Args:
            url: Address of the database.
            name: Of the study.
            identity: The facts that make trials comparable.
            problem: The problem that is searched.
            sampler: As in `tuning.sampler`.
            startup_trials: Random points before the sampler proposes.
            seed: Of the sampler.

        Raises:
            RunError: The database cannot be used, or the study was made for something else.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with alone(url), storage_errors(url), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = open_storage(url)
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                directions=[objective.direction for objective in problem.objectives],
                load_if_exists=True,
            )
            known = study.user_attrs.get(IDENTITY)
            if known is None:
                study.set_user_attr(IDENTITY, dict(identity))
                study.set_metric_names([objective.name for objective in problem.objectives])
            else:
                check_same(known, identity, name)
            trials = study.get_trials(deepcopy=False)
            study.sampler = make_sampler(
                sampler, startup_trials + 2, _seed(seed, len(trials), shared=url.startswith("postgresql"))
            )
            opened = cls(study, url, problem, startup_trials)
            if not trials:
                opened.ask_for(problem.space.point_of(problem.present), "present")
        return opened

    @property
    def name(self) -> str:
        return self.study.study_name

    def ask(self) -> Draft:
        """Return the next trial: a point from the queue, else one that the sampler proposes."""
        with storage_errors(self._url):
            self.recover()
            trial = self.study.ask()
            trial.set_user_attr(WORKER, worker())
            trial.set_user_attr(LEASE, time.time() + _LEASE_S)
            point = self.problem.space.suggest(trial, self.problem.present)
            kind: TrialKind = trial.user_attrs.get("kind") or ("random" if self._starting() else "search")
            trial.set_user_attr(ASKED, {"kind": kind, "point": dict(point)})
            return Draft(trial, point, kind)

    def ask_for(self, point: Mapping[str, Value], kind: TrialKind, **attributes: Any) -> None:
        """Queue a point."""
        with storage_errors(self._url):
            self.study.enqueue_trial(dict(point), user_attrs={"kind": kind, **attributes})

    @contextmanager
    def leased(self, draft: Draft) -> Iterator[None]:
        """Renew the trial's lease while the context lasts."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(_RENEW_S):
                try:
                    draft.trial.set_user_attr(LEASE, time.time() + _LEASE_S)
                except Exception as error:  # noqa: BLE001 (whatever the database raises: the main thread meets it too)
                    log.warning("trial %d: its lease cannot be renewed: %s", draft.trial.number, error)

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def finish(self, draft: Draft, record: TrialRecord) -> None:
        """Record the outcome of a trial; from then on it cannot be lost.

        A configuration that does not serve, or cannot fit, is recorded as complete with its violations, since samplers
        ignore failed trials. An outcome that says nothing about the configuration is recorded as failed.
        """
        trial = draft.trial
        with storage_errors(self._url), warnings.catch_warnings():
            # CMA-ES warns at each trial that it ignores the violations; other readers use them.
            warnings.filterwarnings("ignore", message="Constraints have been set, but CmaEsSampler")
            try:
                for name, violation in record.violations.items():
                    trial.set_constraint(name, violation)
                trial.set_user_attr(ENDED, _described(record))
                if record.reason is not None:
                    trial.set_user_attr("reason", record.reason)  # by itself, for optuna-dashboard
                if record.outcome in ("unmeasurable", "repeated", "lost"):
                    self.study.tell(trial, state=TrialState.FAIL)
                elif record.outcome == "pruned" and len(self.study.directions) == 1 and record.values is not None:
                    trial.report(record.values[0], len(record.blocks))
                    self.study.tell(trial, state=TrialState.PRUNED)
                else:
                    self.study.tell(trial, list(record.values or ()))
            except (optuna.exceptions.UpdateFinishedTrialError, ValueError) as error:
                if not self._ended(trial.number):
                    raise
                log.warning("trial %d: another process recorded it as lost in the meantime (%s)", trial.number, error)

    def records(self) -> list[TrialRecord]:
        """Return every trial that has ended, in order."""
        with storage_errors(self._url):
            trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self._read:
                self._read[trial.number] = _record(trial)
        return [self._read[number] for number in sorted(self._read)]

    def recover(self) -> int:
        """Queue the points of trials whose process has ended again; return their number."""
        lost = 0
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not _is_lost(trial):
                continue
            try:
                self.study.tell(trial.number, state=TrialState.FAIL)
            except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
                continue  # another process was quicker
            lost += 1
            retries = int(trial.user_attrs.get("retries", 0)) + 1
            asked = trial.user_attrs.get(ASKED)
            if asked is not None and retries <= _MOST_RETRIES:
                self.ask_for(asked["point"], asked["kind"], retries=retries)
        return lost

    def note(self, name: str, value: Any) -> None:
        """Keep a value with the study."""
        with storage_errors(self._url):
            self.study.set_user_attr(name, value)

    def noted(self, name: str) -> Any:
        """Return the value that was kept under this name; None if there is none."""
        with storage_errors(self._url):
            return self.study.user_attrs.get(name)

    def measured_points(self) -> dict[str, int]:
        """Return the number of the first trial of each point that was measured, is measured now, or waits."""
        with storage_errors(self._url):
            trials = self.study.get_trials(deepcopy=False)
        found: dict[str, int] = {}
        for trial in trials:
            asked, ended = trial.user_attrs.get(ASKED), trial.user_attrs.get(ENDED, {})
            point = asked["point"] if asked else trial.system_attrs.get("fixed_params")
            told_nothing = trial.state == TrialState.FAIL and ended.get("outcome") != "unmeasurable"
            if point is not None and not told_nothing:
                found.setdefault(point_key(point), trial.number)
        return found

    def _starting(self) -> bool:
        # Besides the random points the sampler has the present configuration and its repeat.
        told = (TrialState.COMPLETE, TrialState.PRUNED)
        return len(self.study.get_trials(deepcopy=False, states=told)) < self._startup_trials + 2

    def _ended(self, number: int) -> bool:
        trials = self.study.get_trials(deepcopy=False)
        return any(trial.number == number and trial.state.is_finished() for trial in trials)


def make_sampler(name: str, startup_trials: int, seed: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of that name (as in `tuning.sampler`)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "tpe":
                # multivariate and grouped: keys act together, and those with a condition are not always there.
                return optuna.samplers.TPESampler(
                    n_startup_trials=startup_trials,
                    multivariate=True,
                    group=True,
                    seed=seed,
                )
            case "gp":
                return optuna.samplers.GPSampler(
                    n_startup_trials=startup_trials, seed=seed, warn_independent_sampling=False
                )
            case "cmaes":
                return optuna.samplers.CmaEsSampler(
                    n_startup_trials=startup_trials, seed=seed, warn_independent_sampling=False
                )
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
    raise RunError(f"tuning.sampler={name}: no such sampler; there are tpe, gp, cmaes and random")


def _is_lost(trial: optuna.trial.FrozenTrial) -> bool:
    who, lease = trial.user_attrs.get(WORKER), trial.user_attrs.get(LEASE)
    if who == worker():
        return False
    if lease is None:  # its process died, or still is, between asking and taking the lease
        begun = trial.datetime_start.timestamp() if trial.datetime_start is not None else 0.0
        return time.time() > begun + _LEASE_S
    return is_gone(who) or time.time() > float(lease)


def _seed(seed: int, trials: int, *, shared: bool) -> int:
    """The seed: processes of one study must not draw the same points, and one that continues must draw new ones."""
    entropy = [seed, trials, *([os.getpid()] if shared else [])]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _described(record: TrialRecord) -> dict[str, Any]:
    return {
        "outcome": record.outcome,
        "values": None if record.values is None else list(record.values),
        "violations": dict(record.violations),
        "blocks": [block.record() for block in record.blocks],
        "agreement": None if record.agreement is None else asdict(record.agreement),
        "seconds": round(record.seconds, 4),
        "load_s": round(record.load_s, 4),
        "start_s": round(record.start_s, 4),
        "restarted": record.restarted,
        "ended_at": time.time(),
    }


def _record(trial: optuna.trial.FrozenTrial) -> TrialRecord:
    asked = trial.user_attrs.get(ASKED, {})
    ended = trial.user_attrs.get(ENDED)
    if ended is None:
        lost = "its process ended before it did"
        return TrialRecord(
            trial.number, asked.get("kind", "search"), "lost", asked.get("point", {}), None, {}, reason=lost
        )
    compared = ended.get("agreement")
    return TrialRecord(
        **{
            **ended,
            # A share alone is that of an earlier version, which did not look at decode steps.
            "agreement": Agreement(**compared) if isinstance(compared, dict) else None,
            "number": trial.number,
            "kind": asked["kind"],
            "point": asked["point"],
            "reason": trial.user_attrs.get("reason"),
            "values": None if ended["values"] is None else tuple(ended["values"]),
            "blocks": tuple(BlockResult.of_record(block) for block in ended["blocks"]),
        }
    )
