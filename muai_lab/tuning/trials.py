"""The findings from the trials of a study: the best so far, the noise, the drift. Pure functions over records."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from muai_lab.tuning.agreement import Agreement, not_kept
from muai_lab.tuning.block_result import BlockResult
from muai_lab.tuning.objective import SLO_VIOLATION, Constraints, Objective, total_violation
from muai_lab.tuning.pruning import ASSUMED_BLOCK_NOISE
from muai_lab.tuning.search_space import Point
from muai_lab.wording import plural

TrialKind = Literal["present", "random", "search", "again"]
"""present: The configuration that runs today. again: The best so far, measured once more."""
TrialOutcome = Literal["measured", "pruned", "crashed", "rejected", "unmeasurable", "repeated", "lost"]
"""lost: Its process died or was interrupted. repeated: The point was measured before, so it was not measured again."""

TOOK_TIME = frozenset({"measured", "pruned", "crashed"})
# Until a configuration was measured twice, runs are assumed to differ by this share.
ASSUMED_NOISE = 0.02
ENOUGH_REPEATS = 3


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial of the study.

    number: The number that the study's database gave it, from 0; the log, the page and the result use no other.
    values: One per objective; None if nothing was measured. seconds: Its whole time, of which load_s under load and
    start_s for a start of the server. restarted: True if the server was started for it. ended_at: Unix time.
    """

    number: int
    kind: TrialKind
    outcome: TrialOutcome
    point: Point
    values: tuple[float, ...] | None
    violations: Mapping[str, float]
    blocks: tuple[BlockResult, ...] = ()
    reason: str | None = None
    agreement: Agreement | None = None
    seconds: float = 0.0
    load_s: float = 0.0
    start_s: float = 0.0
    restarted: bool = False
    ended_at: float = 0.0

    @property
    def overhead_s(self) -> float:
        """The time of the trial beyond its load and a start of the server."""
        return self.seconds - self.load_s - self.start_s

    @property
    def feasible(self) -> bool:
        """True if it keeps every bound."""
        return total_violation(self.violations) <= 0.0

    @property
    def key(self) -> str:
        """Equal for trials of the same point."""
        return point_key(self.point)


OUTCOMES: Mapping[TrialOutcome, str] = {
    "measured": "measured to the end",
    "pruned": "pruned",
    "crashed": "did not serve",
    "unmeasurable": "could not be measured",
    "rejected": "refused by calculation",
    "repeated": "the same as another",
    "lost": "lost",
}
"""The name of each outcome in the log and on the page."""


def budget_used(trials: Sequence[TrialRecord]) -> int:
    """Return the number of trials that took time: they alone count, as for `tuning.n_trials`."""
    return sum(trial.outcome in TOOK_TIME for trial in trials)


def tally(trials: Sequence[TrialRecord]) -> str:
    """Return a line such as `12 trials: 9 measured to the end, 2 pruned, 1 did not serve; besides 3 …`."""
    counts = Counter(trial.outcome for trial in trials)

    def listed(count_towards_budget: bool) -> str:
        chosen = [one for one in OUTCOMES if (one in TOOK_TIME) is count_towards_budget and counts[one]]
        return ", ".join(f"{counts[one]} {OUTCOMES[one]}" for one in chosen)

    counted = plural(budget_used(trials), "trial") + (f": {told}" if (told := listed(True)) else "")
    return f"{counted}; besides {others}" if (others := listed(False)) else counted


def point_key(point: Point) -> str:
    """Return a text that is equal for equal points."""
    return json.dumps(dict(point), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Standing:
    """A configuration with all its complete measurements.

    value: Mean of the first objective over its runs. violation: Mean of the total violations of its runs. per_block:
    Mean value of each block.
    """

    point: Point
    runs: tuple[TrialRecord, ...]
    value: float
    violation: float
    per_block: tuple[float, ...]

    @property
    def feasible(self) -> bool:
        """True if it keeps every bound, by the mean of its runs."""
        return self.violation <= 0.0

    @property
    def agreement(self) -> Agreement | None:
        """Its greedy tokens compared with those of fp32; None if they were not compared."""
        return next((run.agreement for run in self.runs if run.agreement is not None), None)

    @property
    def number(self) -> int:
        """Number of the trial in which it was first measured."""
        return self.runs[0].number


def standings(trials: Sequence[TrialRecord], objective: Objective) -> list[Standing]:
    """Return every configuration that was measured to the end, best first.

    Those that keep every bound come first, by the objective; then the others, by the size of their violations. A
    configuration measured several times counts with the mean of its runs, so that a lucky first run counts less.
    """
    by_point: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.outcome == "measured":
            by_point.setdefault(trial.key, []).append(trial)
    found = [_standing(runs, objective) for runs in by_point.values()]
    sign = -1.0 if objective.larger_is_better else 1.0
    return sorted(found, key=lambda one: (max(one.violation, 0.0), sign * one.value, one.number))


def _standing(runs: Sequence[TrialRecord], objective: Objective) -> Standing:
    blocks = np.array([objective.per_block(run.blocks) for run in runs])
    return Standing(
        point=runs[0].point,
        runs=tuple(runs),
        value=float(np.mean([run.values[0] for run in runs if run.values is not None])),
        violation=float(np.mean([total_violation(run.violations) for run in runs])),
        per_block=tuple(blocks.mean(axis=0).tolist()),
    )


@dataclass(frozen=True, slots=True)
class RunNoise:
    """Variance of the logarithm of a run's value, and the degrees of freedom from which it is known."""

    variance: float
    freedom: float

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return math.sqrt(self.variance)

    def with_(self, other: RunNoise) -> RunNoise:
        """Both pooled."""
        freedom = self.freedom + other.freedom
        if not freedom:
            return self
        pooled = (self.variance * self.freedom + other.variance * other.freedom) / freedom
        return RunNoise(pooled, freedom)


ASSUMED_RUN_NOISE = RunNoise(ASSUMED_NOISE**2, 0)


@dataclass(frozen=True, slots=True)
class TrialNoise:
    """Standard deviations of measurements of one configuration, relative to their mean.

    run: Of whole trials. block: Of single blocks. samples: Measurements beyond the first of their configuration, from
    which the noise is known; 0 if it is assumed. drift: Fitted relative change of the same configuration from the first
    repeat to the last; None with fewer than three repeats.
    """

    run: float
    block: float
    samples: int
    drift: float | None = None

    @property
    def of_runs(self) -> RunNoise:
        """The noise of whole runs."""
        return RunNoise(self.run**2, self.samples)


def noise_of(trials: Sequence[TrialRecord], objective: Objective) -> TrialNoise:
    """Return the noise, from all configurations that were measured to the end more than once."""
    repeated = [standing for standing in standings(trials, objective) if len(standing.runs) > 1]
    samples = sum(len(standing.runs) - 1 for standing in repeated)
    if not samples:
        return TrialNoise(ASSUMED_NOISE, ASSUMED_BLOCK_NOISE, 0)
    runs, blocks, times = [], [], []
    for standing in repeated:
        scale = abs(standing.value) or 1.0
        level = np.abs(standing.per_block)
        level = np.where(level > 0, level, scale)
        for run in standing.runs:
            assert run.values is not None, "a measured trial has values"
            runs.append((run.values[0] - standing.value) / scale)
            blocks.append((np.array(objective.per_block(run.blocks)) - standing.per_block) / level)
            times.append(run.ended_at - np.mean([other.ended_at for other in standing.runs]))
    per_block = np.concatenate(blocks)
    # Two runs may happen to agree: until there are enough, the assumption counts for the repeats that are missing.
    missing = max(ENOUGH_REPEATS - samples, 0)
    seen, places = samples + missing, len(repeated[0].per_block)
    return TrialNoise(
        run=math.sqrt((float(np.square(runs).sum()) + missing * ASSUMED_NOISE**2) / seen),
        block=math.sqrt((float(np.square(per_block).sum()) / places + missing * ASSUMED_BLOCK_NOISE**2) / seen),
        samples=samples,
        drift=_drift(np.array(times), np.array(runs)) if samples >= 3 else None,
    )


def _drift(seconds: Any, deviations: Any) -> float | None:
    """Least-squares slope over the times that the repeats span."""
    spread = float(np.square(seconds).sum())
    return float((seconds * deviations).sum()) / spread * float(np.ptp(seconds)) if spread > 0 else None


def trials_without_gain(trials: Sequence[TrialRecord], objective: Objective, noise: float) -> int:
    """Return the number of configurations since the last that gained more than twice the noise over the best before."""
    best: TrialRecord | None = None
    since = 0
    for trial in trials:
        if trial.outcome not in TOOK_TIME or trial.kind == "again":
            continue
        since += 1
        if trial.outcome != "measured" or trial.values is None:
            continue
        if best is None or _beats(trial, best, objective, 2.0 * noise):
            best, since = trial, 0
    return since


def _beats(new: TrialRecord, old: TrialRecord, objective: Objective, by: float) -> bool:
    assert new.values, "it was measured"
    assert old.values, "it was measured"
    if new.feasible != old.feasible:
        return new.feasible
    if not new.feasible:
        return total_violation(old.violations) - total_violation(new.violations) > by
    return objective.gain(new.values[0], old.values[0]) > by


def pareto_front(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Return the trials that keep every bound and that no other dominates, in order of the first objective."""
    candidates = [trial for trial in trials if trial.outcome == "measured" and trial.feasible and trial.values]
    front = [trial for trial in candidates if not any(_dominates(other, trial, objectives) for other in candidates)]
    return sorted(front, key=lambda trial: trial.values[0] if trial.values else 0.0)


def _dominates(one: TrialRecord, other: TrialRecord, objectives: Sequence[Objective]) -> bool:
    assert one.values, "candidates have values"
    assert other.values, "candidates have values"
    gains = [objective.gain(new, old) for objective, new, old in zip(objectives, one.values, other.values, strict=True)]
    return min(gains) >= 0.0 and max(gains) > 0.0


def missed_bounds(standing: Standing, bounds: Constraints) -> str | None:
    """Return the amount by which the best configuration misses agreement or SLO, in words; None if it keeps both."""
    first = standing.runs[0]
    if bounds.min_agreement is not None and (reason := not_kept(standing.agreement, bounds.min_agreement)) is not None:
        return f"of the best, {reason}"
    violation = first.violations.get(SLO_VIOLATION, 0.0)
    if bounds.quantile is None or standing.feasible or violation <= 0.0:
        return None
    kept = bounds.quantile * (1.0 - violation)
    return (
        f"no configuration keeps the SLO: with the best {kept:.1%} of the requests met it, and {bounds.quantile:.0%} "
        "must"
    )
