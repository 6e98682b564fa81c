"""Several configurations measured in rounds: each round runs all of them once, in an order that rotates.

Runs are the samples. The logarithm of a run's value is modelled as configuration + round + noise of the run. The
variance of that noise comes from the residuals of the model, pooled over all configurations and with the repeats of the
search. It contains both the noise between runs and that between blocks: a difference of two means over r rounds has the
variance (σ_run² + σ_block² / b) · 2 / r, with b blocks in a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from scipy.special import stdtrit

from muai_lab.analysis.statistics import Estimate
from muai_lab.arrays import Floats
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.arena import ConfigurationFailed
from muai_lab.tuning.bench import Unmeasurable
from muai_lab.tuning.block_result import BlockResult
from muai_lab.tuning.objective import Objective
from muai_lab.tuning.trials import RunNoise

MeasureRun = Callable[[OptimizationSettings], Sequence[BlockResult]]
"""Measures one run of a configuration. Raises ConfigurationFailed, Unmeasurable, Interrupted."""

Arm = TypeVar("Arm", bound=Hashable)


@dataclass(frozen=True, slots=True)
class ArmRuns(Generic[Arm]):
    """The runs of each arm, one for each round. failed: The reason why an arm has none."""

    runs: Mapping[Arm, tuple[tuple[BlockResult, ...], ...]]
    failed: Mapping[Arm, Exception]

    def blocks(self, arm: Arm) -> list[BlockResult]:
        """Return all blocks of an arm."""
        return [block for run in self.runs[arm] for block in run]


def in_rounds(run: MeasureRun, arms: Mapping[Arm, OptimizationSettings], rounds: int, essential: Arm) -> ArmRuns[Arm]:
    """Measure every arm once in each round. An arm that fails is left out of further rounds.

    Raises ConfigurationFailed or Unmeasurable if the essential arm fails, Interrupted.
    """
    found: dict[Arm, list[tuple[BlockResult, ...]]] = {arm: [] for arm in arms}
    failed: dict[Arm, Exception] = {}
    names = list(arms)
    for number in range(rounds):
        turned = names[number % len(names) :] + names[: number % len(names)]
        for arm in turned if number % 2 == 0 else reversed(turned):
            if arm in failed:
                continue
            try:
                found[arm].append(tuple(run(arms[arm])))
            except (ConfigurationFailed, Unmeasurable) as error:
                if arm == essential:
                    raise
                failed[arm] = error
    return ArmRuns({arm: tuple(found[arm]) for arm in names if arm not in failed}, failed)


def log_levels(rounds: ArmRuns[Arm], objective: Objective, essential: Arm) -> dict[Arm, Floats]:
    """Return the logarithm of each run's value, relative to the first run of the essential arm; better is larger."""
    reference = objective.value(rounds.runs[essential][0])
    return {
        arm: np.array([objective.log_gain(objective.value(run), reference) for run in runs])
        for arm, runs in rounds.runs.items()
    }


def noise_within(levels: Mapping[Arm, Floats]) -> RunNoise:
    """Return the noise of a run: the part that configuration and round do not explain."""
    table = np.array(list(levels.values()))
    arms, rounds = table.shape
    freedom = (arms - 1) * (rounds - 1)
    if not freedom:
        return RunNoise(0.0, 0)
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    return RunNoise(float(np.square(rest).sum()) / freedom, freedom)


def difference(better: Floats, worse: Floats, noise: RunNoise, tail: float = 0.025) -> Estimate:
    """Return the mean logarithm of the factor between two arms of the same rounds, with its interval."""
    mean = float((better - worse).mean())
    if not noise.freedom:
        return Estimate(mean)
    reach = -float(stdtrit(noise.freedom, tail)) * math.sqrt(2.0 * noise.variance / len(better))
    return Estimate(mean, mean - reach, mean + reach)


def as_gain(objective: Objective, logarithm: Estimate) -> Estimate:
    """Return the relative gain of such a logarithm."""
    ends = (logarithm.value, logarithm.low, logarithm.high)
    return Estimate(*(None if end is None else objective.gain_of_log(end) for end in ends))
