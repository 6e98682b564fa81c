"""Distributions of the lengths, counts and pauses of a workload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from muai_lab.settings.section import AnySequence, Conflict, Name, Order, Section, setting


def _check_weights(weights: tuple[float, ...]) -> tuple[float, ...]:
    if weights and not any(weights):
        raise ValueError("every weight is 0: nothing could be drawn")
    return weights


class FixedLength(Section):
    """Always the same length."""

    distribution: Literal["fixed"] = setting("fixed", "Every length is `value`.")
    value: int = setting(64, "The length.", ge=1)


class UniformLength(Section):
    """Lengths from low to high, both included, all equally likely."""

    distribution: Literal["uniform"] = setting("uniform", "Lengths from `low` to `high`, equally likely.")
    low: int = setting(16, "Shortest length.", ge=1)
    high: int = setting(128, "Longest length.", ge=1)

    orders: ClassVar[tuple[Order, ...]] = (Order("low", "high"),)


class _BoundedLength(Section):
    """Drawn lengths, rounded and limited to the range from low to high."""

    low: int = setting(1, "Shortest length; replaces shorter draws.", ge=1)
    high: int | None = setting(None, "Longest length; replaces longer draws. null for no limit.", ge=1)

    orders: ClassVar[tuple[Order, ...]] = (Order("low", "high"),)


class NormalLength(_BoundedLength):
    """Normally distributed lengths."""

    distribution: Literal["normal"] = setting("normal", "Normally distributed lengths.")
    mean: float = setting(64.0, "Mean length.", gt=0)
    sigma: float = setting(16.0, "Standard deviation of the length.", ge=0)


class LognormalLength(_BoundedLength):
    """Lengths whose logarithm is normally distributed: many short, few very long."""

    distribution: Literal["lognormal"] = setting("lognormal", "Lengths whose logarithm is normally distributed.")
    mean: float = setting(64.0, "Mean of the length itself (not of its logarithm).", gt=0)
    sigma: float = setting(0.8, "Standard deviation of the natural logarithm of the length.", ge=0)


class EmpiricalLength(Section):
    """Observed lengths, drawn as often as they were observed; given here or in a file."""

    distribution: Literal["empirical"] = setting("empirical", "Observed lengths.")
    values: Annotated[tuple[Annotated[int, Field(ge=1)], ...], AnySequence] = setting((), "The lengths.")
    weights: Annotated[tuple[Annotated[float, Field(ge=0)], ...], AnySequence, AfterValidator(_check_weights)] = (
        setting((), "Number of observations of each of `values`; empty if all are equal.")
    )
    path: Name | None = setting(
        None,
        "Text file with one length per line, or a length and its weight separated by a comma; replaces values.",
    )

    def conflicts(self) -> Iterator[Conflict]:
        if (self.path is None) == (not self.values):
            yield Conflict(("values", "path"), "give the lengths either as values or in a file (path)")
        if self.weights and len(self.weights) != len(self.values):
            yield Conflict(
                ("weights", "values"), f"{len(self.weights)} weights for {len(self.values)} values: give one for each"
            )


LengthDistribution = Annotated[
    FixedLength | UniformLength | NormalLength | LognormalLength | EmpiricalLength, Field(discriminator="distribution")
]


class FixedTime(Section):
    """Always the same time."""

    distribution: Literal["fixed"] = setting("fixed", "Every time is `value_s`.")
    value_s: float = setting(1.0, "The time.", unit="s", ge=0)


class ExponentialTime(Section):
    """Exponentially distributed times, as of independent events."""

    distribution: Literal["exponential"] = setting("exponential", "Exponentially distributed times.")
    mean_s: float = setting(1.0, "Mean time.", unit="s", gt=0)


class LognormalTime(Section):
    """Times whose logarithm is normally distributed: mostly short, a few very long."""

    distribution: Literal["lognormal"] = setting("lognormal", "Times whose logarithm is normally distributed.")
    mean_s: float = setting(1.0, "Mean of the time itself (not of its logarithm).", unit="s", gt=0)
    sigma: float = setting(0.8, "Standard deviation of the natural logarithm of the time.", ge=0)


TimeDistribution = Annotated[FixedTime | ExponentialTime | LognormalTime, Field(discriminator="distribution")]
