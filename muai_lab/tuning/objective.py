"""What is to get better, and what must hold: objectives and constraints over the blocks of a trial."""

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


@dataclass(frozen=True, slots=True)
class Objective:
    """One figure of merit. value: from the blocks of a trial. worst: what a configuration gets that does not serve."""

    name: str
    title: str
    unit: str
    larger_is_better: bool
    worst: float
    value: Callable[[Sequence[BlockResult]], float]

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """As Optuna calls it."""
        return "maximize" if self.larger_is_better else "minimize"

    def gain(self, new: float, old: float) -> float:
        """How much better `new` is than `old`, relative to `old`; above 0 is better, whatever the direction."""
        change = new - old if self.larger_is_better else old - new
        if old == 0.0:
            return math.copysign(1.0, change) if change else 0.0
        return change / abs(old)

    def log_gain(self, new: float, old: float) -> float:
        """Logarithm of the factor by which `new` is better than `old`; factors beyond a hundred count as a hundred."""
        factor = new / old if old > 0.0 else math.inf if new > 0.0 else 1.0
        bounded = math.log(min(max(factor, 1.0 / _MOST_FACTOR), _MOST_FACTOR))
        return bounded if self.larger_is_better else -bounded

    def gain_of_log(self, log_gain: float) -> float:
        """The gain, as `gain` tells it, of such a logarithm."""
        return math.expm1(log_gain) if self.larger_is_better else -math.expm1(-log_gain)

    def log_of_gain(self, gain: float) -> float:
        """The logarithm whose gain it is; gains beyond a factor of a hundred count as that."""
        return self.log_gain(1.0 + gain if self.larger_is_better else 1.0 - gain, 1.0)

    def per_block(self, blocks: Sequence[BlockResult]) -> list[float]:
        """The figure of each block by itself, for comparison block by block."""
        return [self.value([block]) for block in blocks]


def objectives_of(settings: LabSettings) -> tuple[Objective, ...]:
    """The objectives that the settings ask for. Raises RunError for goodput without a promise."""
    tuning, slo = settings.tuning, settings.slo
    promised = has_slo(slo)
    if "goodput" in tuning.objectives and not promised:
        raise RunError(
            "goodput counts the requests that keep a promise, and nothing is promised: choose one (slo=interactive) or "
            "another objective (tuning.objectives=[throughput])"
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
    """What must hold. quantile: share of the requests that must keep the promise, None when nothing was promised."""

    quantile: float | None = None
    max_errors: float = 0.01
    min_agreement: float | None = None

    @classmethod
    def of(cls, settings: LabSettings) -> Constraints:
        """The bounds of the settings."""
        slo = settings.slo
        tuning = settings.tuning
        return cls(slo.quantile if has_slo(slo) else None, tuning.max_errors, tuning.min_agreement)

    def violations(
        self, blocks: Sequence[BlockResult], agreement: Agreement | None, *, growing: bool = False
    ) -> dict[str, float]:
        """How far each bound is missed, relative to the bound: 0 or less holds, 1 is as bad as can be.

        agreement: greedy tokens compared with those of fp32, whose lower bound counts; None if they were not compared.
        growing: whether the load ended with a growing backlog, which no longer run would keep the SLO with.
        """
        found = {"serves": 0.0, "memory": 0.0, "errors": _over(error_share(blocks), self.max_errors)}
        if self.quantile is not None:
            missed = (self.quantile - attainment(blocks)) / self.quantile
            found["promise"] = max(missed, _GROWING) if growing else missed
        if self.min_agreement is not None:
            low = self.min_agreement if agreement is None else agreement.low  # what is not known must not steer
            found["agreement"] = (self.min_agreement - low) / self.min_agreement
        return found

    def of_failure(self, constraint: str, excess: float = 1.0) -> dict[str, float]:
        """The violations of a configuration that was not measured: all as bad as can be, its own cause by `excess`."""
        found = {"serves": 1.0, "memory": 0.0, "errors": 1.0}
        if self.quantile is not None:
            found["promise"] = 1.0
        if self.min_agreement is not None:
            found["agreement"] = 0.0  # nothing is known of it, and a bound that is not known to fail must not steer
        return found | {constraint: min(max(excess, 0.01), 1.0)}


def _over(share: float, bound: float) -> float:
    return (share - bound) / (1.0 - bound)


def missed(violations: Mapping[str, float]) -> str:
    """The bounds that are missed, by name: `promise, errors`; empty if every bound is kept."""
    return ", ".join(name for name, value in violations.items() if value > 0.0)


def total_violation(violations: Mapping[str, float]) -> float:
    """The sum of what is missed; 0 for a configuration that keeps every bound."""
    return sum(max(value, 0.0) for value in violations.values())
