"""The arena in which configurations are measured: the interface between the search and the server."""

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
        """Let this configuration serve: by a live change if that is possible, else by a restart and a warm-up.

        Its prefix cache is empty afterwards.

        Args:
            optimization: The configuration.
            restart: True to restart the server even if a live change is possible.

        Returns:
            True if the server was restarted.

        Raises:
            ConfigurationFailed: It does not serve.
        """

    def replay(self, block: int) -> BlockResult:
        """Offer block number `block` and judge it; the same number is the same load. Raises ConfigurationFailed."""

    def soak(self, number: int, seconds: float, *, rate: float | None = None) -> Soak:
        """Offer soak window `number` of this length and judge it; the same number is the same load.

        rate: offered instead of the configured one, in requests per second. Raises ConfigurationFailed.
        """

    def agreement(self) -> Agreement | None:
        """Compare the greedy tokens of the server with those of the model in fp32; None if there is no comparison.

        Raises ConfigurationFailed.
        """

    def serving(self) -> Mapping[str, Any]:
        """Return the engine that serves now, as a run's manifest has it."""

    def close(self) -> None:
        """End the server."""
