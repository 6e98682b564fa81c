"""An arena with a known answer: goodput as a function of the configuration, with as much noise as a test wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.arena import ConfigurationFailed
from muai_lab.tuning.block_result import BlockResult
from muai_lab.tuning.soak import Soak

BLOCK_S, DUE = 10.0, 200


def agreeing(low: float) -> Agreement:
    """A comparison with this lower bound."""
    return Agreement(low + 0.005, low, 1536, 1472, 64)


class FakeArena:
    """Serves a share of `DUE` requests a block in time; blocks differ in how hard they are. share: of a configuration.

    failing: configurations that do not serve. spoilt: configurations under which the load generator is too slow.
    """

    def __init__(
        self,
        share: Callable[[OptimizationSettings], float],
        *,
        noise: float = 0.0,
        seed: int = 0,
        failing: Callable[[OptimizationSettings], bool] = lambda optimization: False,
        spoilt: Callable[[OptimizationSettings], bool] = lambda optimization: False,
        agreement: Callable[[OptimizationSettings], Agreement] = lambda optimization: agreeing(0.99),
    ) -> None:
        self.applied: list[OptimizationSettings] = []
        self.replayed: list[int] = []
        self.after_block: Callable[[], None] = lambda: None
        self.capacity = 15.0
        self.compared = 0
        self.soaked: list[tuple[int, float, float | None]] = []
        self._share = share
        self._noise = noise
        self._random = np.random.default_rng(seed)
        self._failing = failing
        self._spoilt = spoilt
        self._agreement = agreement

    def apply(self, optimization: OptimizationSettings, *, restart: bool = False) -> bool:
        if self._failing(optimization):
            raise ConfigurationFailed("out of memory")
        self.applied.append(optimization)
        return restart

    def replay(self, block: int) -> BlockResult:
        optimization = self.applied[-1]
        self.replayed.append(block)
        self.after_block()
        hardness = 1.0 - 0.1 * (block % 3)
        share = self._share(optimization) * hardness + self._noise * float(self._random.normal())
        met = round(DUE * min(max(share, 0.0), 1.0))
        spoilt = "p99 of the send lag is 80 ms" if self._spoilt(optimization) else None
        return BlockResult(BLOCK_S, DUE, met, 0, 30.0 * DUE, (0.1,) * 20, {"ttft": DUE - met}, spoilt)

    def soak(self, number: int, seconds: float, *, rate: float | None = None) -> Soak:
        """A window whose queue has a short memory; above `capacity` requests per second a backlog grows."""
        self.soaked.append((number, seconds, rate))
        slices = []
        for place in range(5):
            part = self.replay(place)
            share = part.met / part.due
            if rate is not None:
                share = 1.0 if rate <= self.capacity else share
            slices.append(replace(part, seconds=seconds / 5, met=round(share * part.due)))
        spare = np.array([1.0 - part.met / part.due for part in slices])
        return Soak(seconds, tuple(slices), 0.1, 1.0, 0.1, 0.0, False, self.capacity, float(spare.mean()), 0.01)

    def agreement(self) -> Agreement:
        self.compared += 1
        return self._agreement(self.applied[-1])

    def serving(self) -> Mapping[str, Any]:
        return {"name": "fake", "version": "1"}

    def close(self) -> None:
        pass


class SilentWatcher:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.records: list = []

    def begins(self, draft: Any) -> None:
        pass

    def ended(self, record: Any, best: Any, done: int) -> None:
        self.records.append(record)
