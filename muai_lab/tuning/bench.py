"""The bench: measures configurations of one problem in an arena, in runs of blocks or of one soak window."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from muai_lab.errors import RunError
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.arena import Arena
from muai_lab.tuning.block_result import BlockResult
from muai_lab.tuning.load_blocks import FRESH, SOAK
from muai_lab.tuning.problem import TuningProblem
from muai_lab.tuning.soak import Soak
from muai_lab.tuning.trials import ASSUMED_RUN_NOISE, RunNoise

# A block in which the load generator could not keep up is offered again. If that happens every time, the load is too
# much, or something else keeps the machine busy.
_TRIES = 3

GiveUp = Callable[[Sequence[BlockResult]], str | None]
"""Called after each block. Returns the reason to end the run early; None to continue."""


class Unmeasurable(RunError):
    """The figures describe the load generator rather than the server."""


class Interrupted(Exception):
    """A stop was requested, and the block that ran then is over."""


class Switch:
    """A request to stop, which is looked at between blocks."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> None:
        """Request the stop."""
        self.asked = True

    def check(self) -> None:
        """Raise Interrupted if a stop was requested."""
        if self.asked:
            raise Interrupted


@dataclass(slots=True)
class Measurement:
    """One run of a configuration.

    given_up: The reason why it ended early; None if it did not. load_s, start_s: Time under load, and of a restart.
    growing: True if it was a soak window that ended with a growing backlog.
    """

    blocks: list[BlockResult] = field(default_factory=list)
    agreement: Agreement | None = None
    given_up: str | None = None
    restarted: bool = False
    load_s: float = 0.0
    start_s: float = 0.0
    growing: bool = False


@dataclass(frozen=True, slots=True)
class Bench:
    """The problem, the arena in which its configurations are measured, and the length of a run.

    blocks: Blocks of load in a run. soak_s: Length of the soak window that a run is instead, seconds; None for blocks.
    noise: Of runs of one configuration. switch: Looked at between blocks.
    """

    problem: TuningProblem
    arena: Arena
    switch: Switch
    blocks: int
    soak_s: float | None = None
    noise: RunNoise = ASSUMED_RUN_NOISE

    def run(
        self,
        optimization: OptimizationSettings,
        *,
        give_up: GiveUp = lambda blocks: None,
        wants_agreement: bool = False,
    ) -> Measurement:
        """Measure one run of a configuration on the load of the search.

        Args:
            optimization: The configuration.
            give_up: Ends a run of blocks early.
            wants_agreement: True to compare greedy tokens after the load; before it, that would warm the server up.

        Raises:
            ConfigurationFailed: It does not serve.
            Unmeasurable: The load generator is the bottleneck.
            Interrupted: A stop was requested.
        """
        if self.soak_s is not None:
            return self.soak(optimization, SOAK, self.soak_s, wants_agreement=wants_agreement)[0]
        return self.replay(optimization, range(self.blocks), give_up=give_up, wants_agreement=wants_agreement)

    def fresh_run(self, optimization: OptimizationSettings, number: int) -> tuple[Measurement, Soak | None]:
        """Measure run `number` on load that the search has not seen, on a server that is started for it.

        Raises ConfigurationFailed, Unmeasurable, Interrupted.
        """
        if self.soak_s is not None:
            return self.soak(optimization, FRESH + number, self.soak_s, restart=True)
        first = FRESH + number * self.blocks
        return self.replay(optimization, range(first, first + self.blocks), restart=True), None

    def replay(
        self,
        optimization: OptimizationSettings,
        blocks: Sequence[int],
        *,
        give_up: GiveUp = lambda blocks: None,
        wants_agreement: bool = False,
        restart: bool = False,
    ) -> Measurement:
        """Apply a configuration and replay these blocks. See `run`."""
        found = self._applied(optimization, restart=restart)
        for block in blocks:
            self.switch.check()
            began = time.perf_counter()
            try:
                found.blocks.append(self._block(optimization, block))
            finally:
                found.load_s += time.perf_counter() - began
            found.given_up = give_up(found.blocks)
            if found.given_up is not None and len(found.blocks) < len(blocks):
                return found
            found.given_up = None
        return self._compared(found, wants_agreement=wants_agreement)

    def soak(
        self,
        optimization: OptimizationSettings,
        number: int,
        seconds: float,
        *,
        wants_agreement: bool = False,
        restart: bool = False,
    ) -> tuple[Measurement, Soak]:
        """Apply a configuration and offer one soak window, whose slices are the blocks of the run. See `run`."""
        self.switch.check()
        found = self._applied(optimization, restart=restart)
        began = time.perf_counter()
        seen = self.offer_soak(optimization, number, seconds)
        found.load_s = time.perf_counter() - began
        found.blocks, found.growing = list(seen.slices), seen.grown_steadily
        return self._compared(found, wants_agreement=wants_agreement), seen

    def offer_soak(
        self, optimization: OptimizationSettings, number: int, seconds: float, *, rate: float | None = None
    ) -> Soak:
        """Offer a soak window to the running configuration, again if it measured the load generator.

        Raises ConfigurationFailed, Unmeasurable.
        """
        for _ in range(_TRIES):
            seen = self.arena.soak(number, seconds, rate=rate)
            invalid = next((part.invalid for part in seen.slices if part.invalid is not None), None)
            if invalid is None:
                return seen
            self.arena.apply(optimization)
        raise Unmeasurable(f"the load generator was the bottleneck ({invalid})")

    def _applied(self, optimization: OptimizationSettings, *, restart: bool) -> Measurement:
        began = time.perf_counter()
        restarted = self.arena.apply(optimization, restart=restart)
        return Measurement(restarted=restarted, start_s=time.perf_counter() - began if restarted else 0.0)

    def _compared(self, found: Measurement, *, wants_agreement: bool) -> Measurement:
        self.switch.check()
        if wants_agreement:
            found.agreement = self.arena.agreement()
        return found

    def _block(self, optimization: OptimizationSettings, block: int) -> BlockResult:
        for _ in range(_TRIES):
            result = self.arena.replay(block)
            if result.invalid is None:
                return result
            self.arena.apply(optimization)  # the prefix cache has the block's prompts now: again, they would all hit
        raise Unmeasurable(f"the load generator was the bottleneck ({result.invalid})")
