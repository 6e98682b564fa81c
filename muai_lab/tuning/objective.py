"""Objectives and constraints over the blocks of a trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from muai_lab.errors import RunError
from muai_lab.settings.lab import LabSettings, SloSettings
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.block_result import BlockResult, attainment, error_share

_MOST_FACTOR = 100.0
_GROWING = 0.01  # the violation of a backlog that grows while the requests still meet the SLO
SLO_VIOLATION = "promise"
"""The name of the violation of the SLO in the records of a study."""
_NAMES = {SLO_VIOLATION: "SLO"}  # for people


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective. value: Computes it from the blocks of a trial. worst: The value of a configuration that does not
    serve."""

    name: str
    title: str
    unit: str
    larger_is_better: bool
    worst: float
    value: Callable[[Sequence[BlockResult]], float]

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """The direction, in Optuna's words."""
        return "maximize" if self.larger_is_better else "minimize"

    def gain(self, new: float, old: float) -> float:
        """Return the improvement of `new` over `old`, relative to `old`; above 0 is better, whatever the direction."""
        change = new - old if self.larger_is_better else old - new
        if old == 0.0:
            return math.copysign(1.0, change) if change else 0.0
        return change / abs(old)

    def log_gain(self, new: float, old: float) -> float:
        """Return the logarithm of the factor by which `new` is better; factors beyond a hundred count as a hundred."""
        factor = new / old if old > 0.0 else math.inf if new > 0.0 else 1.0
        bounded = math.log(min(max(factor, 1.0 / _MOST_FACTOR), _MOST_FACTOR))
        return bounded if self.larger_is_better else -bounded

    def gain_of_log(self, log_gain: float) -> float:
        """Return the gain, as `gain` has it, of such a logarithm."""
        return math.expm1(log_gain) if self.larger_is_better else -math.expm1(-log_gain)

    def log_of_gain(self, gain: float) -> float:
        """Return the logarithm of a gain; gains beyond a factor of a hundred count as that."""
        return self.log_gain(1.0 + gain if self.larger_is_better else 1.0 - gain, 1.0)

    def per_block(self, blocks: Sequence[BlockResult]) -> list[float]:
        """Return the value of each block by itself."""
        return [self.value([block]) for block in blocks]


def objectives_of(settings: LabSettings) -> tuple[Objective, ...]:
    """Return the objectives of the settings. Raises RunError for goodput without an SLO."""
    tuning, slo = settings.tuning, settings.slo
    if "goodput" in tuning.objectives and not has_slo(slo):
        raise RunError(
            "goodput counts the requests that meet an SLO, and none is set: choose one (slo=interactive) or another "
            "objective (tuning.objectives=[throughput])"
        )
    per_second = tuning.cost_per_hour / 3600.0
    timeout_s = settings.load.request_timeout_s
    known = (
        Objective("goodput", "Goodput", "requests/s", True, 0.0, _goodput),
        Objective("throughput", "Throughput", "output tokens/s", True, 0.0, _throughput),
        Objective("p99", "Latency, p99", "s", False, timeout_s, lambda blocks: _p99(blocks, timeout_s)),
        Objective(
            "cost", "Cost", "per million output tokens", False, per_second * 1e6,
            # One token per second is where a price per token stops meaning anything.
            lambda blocks: per_second * 1e6 / max(_throughput(blocks), 1.0),
        ),
    )  # fmt: skip
    by_name = {objective.name: objective for objective in known}
    return tuple(by_name[name] for name in tuning.objectives)


def has_slo(slo: SloSettings) -> bool:
    """True if the settings bound a latency."""
    return (slo.ttft_ms, slo.tpot_ms, slo.e2e_ms) != (None, None, None)


def _seconds(blocks: Sequence[BlockResult]) -> float:
    return sum(block.seconds for block in blocks) or math.inf


def _goodput(blocks: Sequence[BlockResult]) -> float:
    return sum(block.met for block in blocks) / _seconds(blocks)


def _throughput(blocks: Sequence[BlockResult]) -> float:
    return sum(block.tokens for block in blocks) / _seconds(blocks)


def _p99(blocks: Sequence[BlockResult], timeout_s: float) -> float:
    latencies = [latency for block in blocks for latency in block.latencies_s]
    return float(np.quantile(latencies, 0.99)) if latencies else timeout_s


@dataclass(frozen=True, slots=True)
class Constraints:
    """Bounds that must hold.

    quantile: Share of the requests that must meet the SLO; None without an SLO. max_errors: Share of the requests that
    may fail. min_agreement: Share of greedy tokens that must be those of fp32; None if they are not compared.
    """

    quantile: float | None = None
    max_errors: float = 0.01
    min_agreement: float | None = None

    @classmethod
    def of(cls, settings: LabSettings) -> Constraints:
        """Return the bounds of the settings."""
        slo = settings.slo
        tuning = settings.tuning
        return cls(slo.quantile if has_slo(slo) else None, tuning.max_errors, tuning.min_agreement)

    def violations(
        self, blocks: Sequence[BlockResult], agreement: Agreement | None, *, growing: bool = False
    ) -> dict[str, float]:
        """Return the distance of each bound that is missed, relative to the bound: 0 or less holds, 1 is the worst.

        Args:
            blocks: Of the run.
            agreement: Greedy tokens compared with those of fp32, whose lower bound counts; None if they were not
                compared.
            growing: True if the load ended with a growing backlog. A longer run would then miss the SLO.
        """
        found = {"serves": 0.0, "memory": 0.0, "errors": _over(error_share(blocks), self.max_errors)}
        if self.quantile is not None:
            missed = (self.quantile - attainment(blocks)) / self.quantile
            found[SLO_VIOLATION] = max(missed, _GROWING) if growing else missed
        if self.min_agreement is not None:
            low = self.min_agreement if agreement is None else agreement.low  # an unknown agreement must not steer
            found["agreement"] = (self.min_agreement - low) / self.min_agreement
        return found

    def of_failure(self, constraint: str, excess: float = 1.0) -> dict[str, float]:
        """Return the violations of a configuration that was not measured: the worst, and `excess` for its own cause."""
        found = {"serves": 1.0, "memory": 0.0, "errors": 1.0}
        if self.quantile is not None:
            found[SLO_VIOLATION] = 1.0
        if self.min_agreement is not None:
            found["agreement"] = 0.0  # as above
        return found | {constraint: min(max(excess, 0.01), 1.0)}


def _over(share: float, bound: float) -> float:
    return (share - bound) / (1.0 - bound)


def missed(violations: Mapping[str, float]) -> str:
    """Return the names of the bounds that are missed: `SLO, errors`; empty if every bound is kept."""
    return ", ".join(_NAMES.get(name, name) for name, value in violations.items() if value > 0.0)


def total_violation(violations: Mapping[str, float]) -> float:
    """Return the sum of the violations; 0 for a configuration that keeps every bound."""
    return sum(max(value, 0.0) for value in violations.values())
