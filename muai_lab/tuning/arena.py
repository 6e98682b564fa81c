"""Where configurations are measured: the contract between the search and what serves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from muai_lab.errors import RunError
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.block_result import BlockResult
from muai_lab.tuning.soak import Soak


class ConfigurationFailed(RunError):
    """A configuration does not serve: the engine does not start, runs out of memory, or dies under load."""


class Arena(Protocol):
    """One server on one machine, and the frozen blocks of load."""

    def apply(self, optimization: OptimizationSettings, *, restart: bool = False) -> bool:
        """Make this what serves, live where only the batcher or the cache changes, else by a restart and a warm-up.

        Its prefix cache is empty afterwards. restart: also where it would not be needed. Returns whether the server was
        restarted. Raises ConfigurationFailed.
        """

    def replay(self, block: int) -> BlockResult:
        """Offer block number `block` and judge it; the same number is the same load. Raises ConfigurationFailed."""

    def soak(self, number: int, seconds: float, *, rate: float | None = None) -> Soak:
        """Offer soak window `number` of this length and judge it; the same number is the same load.

        rate: offered instead of the configured one, in requests per second. Raises ConfigurationFailed.
        """

    def agreement(self) -> Agreement | None:
        """The greedy tokens of what serves, compared with those of the model in fp32; None if there is no comparison.

        Raises ConfigurationFailed.
        """

    def serving(self) -> Mapping[str, Any]:
        """The engine that serves now, as a run's manifest has it."""

    def close(self) -> None:
        """Leave nothing running."""
