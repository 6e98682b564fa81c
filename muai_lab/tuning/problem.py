"""The optimisation problem of one engine: what may change, from where, what is to get better and what must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.objective import Constraints, Objective
from muai_lab.tuning.search_space import SearchSpace


@dataclass(frozen=True, slots=True)
class Rejection:
    """A configuration that need not be measured. excess: The relative excess over the constraint; 1 is the worst."""

    constraint: str
    excess: float
    reason: str


Screen = Callable[[OptimizationSettings], Rejection | None]
"""Rejects configurations by calculation."""


@dataclass(frozen=True, slots=True)
class TuningProblem:
    """One optimisation problem.

    space: The keys that may change. present: The configuration that runs today, a point of the space. objectives: The
    first one decides. constraints: Bounds that must hold. screen: Rejects configurations by calculation.
    """

    space: SearchSpace
    present: OptimizationSettings
    objectives: tuple[Objective, ...]
    constraints: Constraints = field(default_factory=Constraints)
    screen: Screen = lambda optimization: None

    @property
    def objective(self) -> Objective:
        """The objective that decides."""
        return self.objectives[0]
