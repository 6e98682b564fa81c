"""The search space: keys of `optimization` that may change, their ranges, and their conditions."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from muai_lab.settings import section
from muai_lab.settings.schema import OptimizationSettings

if TYPE_CHECKING:
    import optuna

MOST_POINTS = 10_000

_ABSENT = object()

Value = bool | int | float | str | None
Point = Mapping[str, Value]
"""Dotted path -> value, of the parameters that apply."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One key that may change.

    Kind `choice` has `choices`; `int` and `float` have `low` and `high` (both included), perhaps on a logarithmic scale
    or in steps. when: Path -> value of other parameters (or of the present configuration) without which the key has no
    effect and is left as it is.
    """

    path: str
    kind: Literal["int", "float", "choice"]
    low: float = 0
    high: float = 0
    choices: tuple[Value, ...] = ()
    log: bool = False
    step: float | None = None
    when: tuple[tuple[str, Value], ...] = ()

    def applies(self, known: Mapping[str, Any]) -> bool:
        """True if its condition holds. known: The values of all paths that conditions name."""
        return all(known.get(path) == value for path, value in self.when)

    def suggest(self, trial: optuna.Trial) -> Value:
        """Return the sampler's value for this trial."""
        if self.kind == "choice":
            value: Value = trial.suggest_categorical(self.path, self.choices)
            return value
        if self.kind == "int":
            step = int(self.step or 1)
            return trial.suggest_int(self.path, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.path, self.low, self.high, step=self.step, log=self.log)

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Return the distribution that it is drawn from."""
        import optuna

        if self.kind == "choice":
            return optuna.distributions.CategoricalDistribution(self.choices)
        if self.kind == "int":
            return optuna.distributions.IntDistribution(
                int(self.low), int(self.high), log=self.log, step=int(self.step or 1)
            )
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def including(self, value: Value) -> Parameter:
        """Return the parameter, widened if necessary so that `value` is one of its points."""
        if self.kind == "choice":
            held = any(_same(value, choice) for choice in self.choices)
            return self if held else replace(self, choices=(*self.choices, value))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self  # such as null for a number: it stays outside, and is measured as the present configuration
        return replace(self, low=min(self.low, value), high=max(self.high, value))

    def grid(self) -> tuple[Value, ...] | None:
        """Return every value that it can take; None if there are too many to list."""
        if self.kind == "choice":
            return self.choices
        if self.kind == "float" and self.step is None:
            return None
        count = int((self.high - self.low) / (self.step or 1)) + 1
        values = [self.low + index * (self.step or 1) for index in range(min(count, 1000))]
        return tuple(int(value) if self.kind == "int" else value for value in values)

    def steps_between(self, one: object, other: object) -> int:
        """Return the steps between two of its values along its grid; without an order, 1 if they differ."""
        grid = self.grid() or ()
        ordered = all(isinstance(value, int | float) and not isinstance(value, bool) for value in grid)
        if one == other or not ordered or one not in grid or other not in grid:
            return int(one != other)
        return abs(grid.index(one) - grid.index(other))

    def described(self) -> dict[str, Any]:
        """Return the parameter as plain data, for records and comparison."""
        if self.kind == "choice":
            data: dict[str, Any] = {"choices": list(self.choices)}
        else:
            data = {"type": self.kind, "low": self.low, "high": self.high, "log": self.log, "step": self.step}
        return data | ({"when": dict(self.when)} if self.when else {})


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Parameters in an order in which each comes after those that its condition names."""

    parameters: tuple[Parameter, ...]

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(parameter.path for parameter in self.parameters)

    def suggest(self, trial: optuna.Trial, base: OptimizationSettings) -> dict[str, Value]:
        """Return the sampler's point: values of the parameters that apply. base: Has the other keys of conditions."""
        known = self.known(base)
        point: dict[str, Value] = {}
        with warnings.catch_warnings():
            # A present value between two steps is measured all the same; Optuna warns that it is outside.
            warnings.simplefilter("ignore", UserWarning)
            for parameter in self.parameters:
                if parameter.applies(known | point):
                    point[parameter.path] = parameter.suggest(trial)
        return point

    def point_of(self, optimization: OptimizationSettings) -> dict[str, Value]:
        """Return the point of a configuration in this space."""
        known = self.known(optimization)
        return {
            parameter.path: value_at(optimization, parameter.path)
            for parameter in self.parameters
            if parameter.applies(known)
        }

    def including(self, optimization: OptimizationSettings) -> SearchSpace:
        """Return the space, widened so that the configuration is one of its points."""
        return SearchSpace(
            tuple(parameter.including(value_at(optimization, parameter.path)) for parameter in self.parameters)
        )

    def highest(self, path: str) -> float | None:
        """Return the largest number that a parameter can take; None if the space does not have it."""
        for parameter in self.parameters:
            if parameter.path == path:
                numbers = [choice for choice in parameter.choices if isinstance(choice, int | float)]
                return max(numbers) if parameter.kind == "choice" else parameter.high
        return None

    def size(self) -> int | None:
        """Return the number of points, without regard to conditions; None if a parameter is continuous."""
        count = 1
        for parameter in self.parameters:
            values = parameter.grid()
            if values is None:
                return None
            count *= len(values)
        return count

    def steps_between(self, one: Point, other: Point) -> int:
        """Return the distance of two points: the sum of the steps along each scale, 1 for another word or switch."""
        return sum(
            parameter.steps_between(one.get(parameter.path, _ABSENT), other.get(parameter.path, _ABSENT))
            for parameter in self.parameters
        )

    def described(self) -> dict[str, Any]:
        """Return the space as plain data, for records and comparison."""
        return {parameter.path: parameter.described() for parameter in self.parameters}

    def known(self, optimization: OptimizationSettings) -> dict[str, Any]:
        """Return the configuration's value of every path that the space or a condition names."""
        named = {path for parameter in self.parameters for path, _ in parameter.when}
        return {path: value_at(optimization, path) for path in {*named, *self.paths}}


def every_point(space: SearchSpace, base: OptimizationSettings) -> Iterator[dict[str, Value]]:
    """Yield all points of a small space, each once; none if it is continuous or has more than `MOST_POINTS`."""
    size = space.size()
    if size is None or size > MOST_POINTS:
        return
    known = space.known(base)
    seen = set()
    for values in itertools.product(*(parameter.grid() or () for parameter in space)):
        point: dict[str, Value] = {}
        for parameter, value in zip(space, values, strict=True):
            if parameter.applies(known | point):
                point[parameter.path] = value
        if (key := tuple(point.items())) not in seen:
            seen.add(key)
            yield point


def value_at(optimization: OptimizationSettings, path: str) -> Any:
    """Return the value of a dotted path that begins with `optimization.`."""
    return section.value_at(optimization, path.removeprefix("optimization."))
