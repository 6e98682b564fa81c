"""Rules that end a trial before its last block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muai_lab.tuning.block_result import BlockResult
from muai_lab.tuning.objective import Objective

# Until a configuration was measured twice, blocks are assumed to differ by this share.
ASSUMED_BLOCK_NOISE = 0.05
# Standard errors by which a trial must lie behind: about 1 in 160 that are as good as the incumbent would be pruned.
_ERRORS_BEHIND = 2.5


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The best configuration so far, which a trial is compared with.

    per_block: Its value of each block. due: Its requests of each block, which in the open loop every trial has. noise:
    Relative standard deviation of one block between runs of one configuration. keeps_slo: True if it keeps every bound;
    only then is a trial that cannot keep them any more of no use.
    """

    per_block: Sequence[float]
    due: Sequence[int]
    noise: float = ASSUMED_BLOCK_NOISE
    keeps_slo: bool = False


def behind(objective: Objective, blocks: Sequence[BlockResult], incumbent: Incumbent) -> str | None:
    """Return why the trial is clearly worse than the incumbent on the blocks that both have seen; None if it is not.

    The differences are paired block by block, so that an easy or hard block does not count. Their standard error is the
    larger of two: that of runs of one configuration, and that of these differences.
    """
    pairs = list(zip(objective.per_block(blocks), incumbent.per_block, strict=False))
    if not pairs:
        return None
    gains = np.array([objective.gain(new, old) for new, old in pairs])
    mean = float(gains.mean())
    error = incumbent.noise * math.sqrt(2.0 / len(gains))
    if len(gains) > 2:
        error = max(error, float(gains.std(ddof=1)) / math.sqrt(len(gains)))
    if mean + _ERRORS_BEHIND * error >= 0.0:
        return None
    word = "block" if len(gains) == 1 else "blocks"
    return f"{-mean:.0%} behind the best so far after {len(gains)} {word}"


def slo_lost(blocks: Sequence[BlockResult], incumbent: Incumbent, quantile: float) -> str | None:
    """Return why the SLO is lost even if every request of the blocks to come meets it; None if it is not."""
    due, met = sum(block.due for block in blocks), sum(block.met for block in blocks)
    to_come = sum(incumbent.due[len(blocks) :])
    if not due or (met + to_come) / (due + to_come) >= quantile:
        return None
    return f"{due - met} of {due} requests missed the SLO: {quantile:.0%} can no longer be reached"
