"""One configuration, measured over blocks of load until it is through or given up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from muai_lab.errors import RunError
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.arena import Arena
from muai_lab.tuning.block import BlockResult
from muai_lab.tuning.blocks import SOAK
from muai_lab.tuning.soak import Soak

# A block in which the load generator could not keep up is offered again; then it is the load that is too much, or
# something else keeps the machine busy all the time.
_TRIES = 3


class Unmeasurable(RunError):
    """What was seen says more about the load generator than about the server."""


class Interrupted(Exception):
    """Somebody asked to stop, and the block under way is over."""


class Switch:
    """Asked to stop: looked at between blocks."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> None:
        self.asked = True

    def check(self) -> None:
        """Raise Interrupted when it was asked."""
        if self.asked:
            raise Interrupted


@dataclass(slots=True)
class Measurement:
    """What a measurement brought. given_up: why it ended early. load_s, start_s: time under load, and of a restart.

    growing: True if it was a soak window that ended with a growing backlog.
    """

    blocks: list[BlockResult] = field(default_factory=list)
    agreement: Agreement | None = None
    given_up: str | None = None
    restarted: bool = False
    load_s: float = 0.0
    start_s: float = 0.0
    growing: bool = False


def measure(
    arena: Arena,
    optimization: OptimizationSettings,
    blocks: Sequence[int],
    switch: Switch,
    *,
    give_up: Callable[[Sequence[BlockResult]], str | None] = lambda blocks: None,
    wants_agreement: bool = False,
    restart: bool = False,
) -> Measurement:
    """Apply the configuration and replay the blocks; give_up: asked after each block, a reason ends it.

    wants_agreement: Compare greedy tokens, after the load: the comparison would warm the server up.
    Raises ConfigurationFailed, Unmeasurable, Interrupted.
    """
    found = Measurement()
    began = time.perf_counter()
    found.restarted = arena.apply(optimization, restart=restart)
    if found.restarted:
        found.start_s = time.perf_counter() - began
    for block in blocks:
        switch.check()
        began = time.perf_counter()
        try:
            found.blocks.append(_replay(arena, optimization, block))
        finally:
            found.load_s += time.perf_counter() - began
        found.given_up = give_up(found.blocks)
        if found.given_up is not None and len(found.blocks) < len(blocks):
            return found
        found.given_up = None
    switch.check()
    if wants_agreement:
        found.agreement = arena.agreement()
    return found


def soak(
    arena: Arena,
    optimization: OptimizationSettings,
    number: int,
    seconds: float,
    switch: Switch,
    *,
    wants_agreement: bool = False,
    restart: bool = False,
) -> tuple[Measurement, Soak]:
    """Apply the configuration and offer one soak window, whose slices are the blocks of the measurement.

    Raises ConfigurationFailed, Unmeasurable, Interrupted.
    """
    switch.check()
    began = time.perf_counter()
    found = Measurement(restarted=arena.apply(optimization, restart=restart))
    if found.restarted:
        found.start_s = time.perf_counter() - began
    began = time.perf_counter()
    seen = offer_soak(arena, optimization, number, seconds)
    found.load_s = time.perf_counter() - began
    found.blocks, found.growing = list(seen.slices), seen.grown_steadily
    switch.check()
    if wants_agreement:
        found.agreement = arena.agreement()
    return found, seen


def offer_soak(
    arena: Arena, optimization: OptimizationSettings, number: int, seconds: float, *, rate: float | None = None
) -> Soak:
    """Offer a soak window to what serves, again if it measured the load generator. Raises Unmeasurable."""
    for _ in range(_TRIES):
        seen = arena.soak(number, seconds, rate=rate)
        spoilt = next((part.spoilt for part in seen.slices if part.spoilt is not None), None)
        if spoilt is None:
            return seen
        arena.apply(optimization)
    raise Unmeasurable(f"the load generator was the bottleneck ({spoilt})")


def runs_on(
    arena: Arena, switch: Switch, blocks: int, soak_s: float | None
) -> Callable[[OptimizationSettings], Sequence[BlockResult]]:
    """Returns a function that measures one run of a configuration on the load of the search.

    soak_s: length of the soak window that a run is; None for a run of so many blocks.
    """

    def run(optimization: OptimizationSettings) -> Sequence[BlockResult]:
        if soak_s is None:
            return measure(arena, optimization, range(blocks), switch).blocks
        return soak(arena, optimization, SOAK, soak_s, switch)[0].blocks

    return run


def _replay(arena: Arena, optimization: OptimizationSettings, block: int) -> BlockResult:
    for _ in range(_TRIES):
        result = arena.replay(block)
        if result.spoilt is None:
            return result
        arena.apply(optimization)  # the block's prompts are in the prefix cache now: offered again, they would all hit
    raise Unmeasurable(f"the load generator was the bottleneck ({result.spoilt})")
