"""The winner against the present configuration, on load that the search has never seen.

Runs are the samples. A pair is one run of each configuration over the same fresh blocks, each on a server that was
started for it; the order turns from pair to pair (A B, B A, …), so that a drift of the machine falls on both alike.

How many pairs there are follows from how much the first ones scatter and from what the search hopes for, never from the
gain that they show: who measures on until the result pleases finds gains that are none (Stein's two stages, Annals of
Mathematical Statistics 16, 1945, https://doi.org/10.1214/aoms/1177731088). What ends early is only what is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit

from muai_lab.analysis.comparison import mean_change
from muai_lab.analysis.statistics import REPLICATES, Floats
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.arena import Arena
from muai_lab.tuning.block import BlockResult, attainment
from muai_lab.tuning.blocks import FRESH
from muai_lab.tuning.measure import Switch, measure
from muai_lab.tuning.objective import Bounds, Objective

_FIRST_LOOK = 3  # pairs after which a confirmation may be given up


@dataclass(frozen=True, slots=True)
class Pair:
    """Figures of both configurations over the same blocks; per_block: (present, winner) of each block."""

    present: float
    winner: float
    gain: float
    per_block: tuple[tuple[float, float], ...]
    winner_first: bool


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What the pairs say. gain: geometric mean over the pairs, relative, with the ends of its 95 % interval.

    noise: what the mean over as many pairs of equal configurations would differ from 0 by (standard deviation), as the
    repeats of the search tell. attainment: share of the winner's requests that kept the promise, None when nothing was
    promised. accepted: whether the winner may be exported.
    """

    pairs: tuple[Pair, ...]
    gain: float
    low: float
    high: float
    noise: float
    attainment: float | None
    accepted: bool
    reason: str


def confirm(
    arena: Arena,
    present: OptimizationSettings,
    winner: OptimizationSettings,
    objective: Objective,
    bounds: Bounds,
    switch: Switch,
    *,
    pairs: int,
    blocks: int,
    noise: float,
    hoped: float | None = None,
    most_pairs: int = 0,
    after_pair: Callable[[int, int, Pair], None] = lambda done, of, pair: None,
) -> Confirmation:
    """Measure the pairs and judge them. arena: one that opens engines as production will.

    noise: what runs of one configuration differ by (relative standard deviation). hoped: the gain that the search saw,
    relative. Where the first `pairs` scatter too much to tell it from the noise, up to `most_pairs` are measured,
    unless not even these would do. after_pair: is told the pairs done and of how many.
    Raises ConfigurationFailed, Unmeasurable, Interrupted.
    """
    measured: list[Pair] = []
    served: list[BlockResult] = []
    needed, most = pairs, max(pairs, most_pairs)
    wanted: int | None = None
    while (number := len(measured)) < needed:
        fresh = range(FRESH + number * blocks, FRESH + (number + 1) * blocks)
        winner_first = number % 2 == 1
        arms = [winner, present] if winner_first else [present, winner]
        runs = [measure(arena, arm, fresh, switch, restart=True).blocks for arm in arms]
        ours, theirs = (runs[1], runs[0]) if winner_first else (runs[0], runs[1])
        pair = _pair(objective, ours, theirs, winner_first=winner_first)
        measured.append(pair)
        served += theirs
        if number + 1 == pairs and hoped is not None:
            wanted = pairs_to_tell(_log_factors(measured, objective), objective.log_of_gain(hoped), noise)
            if wanted is not None and pairs < wanted <= most:
                needed = wanted
        after_pair(number + 1, needed, pair)
        if _FIRST_LOOK <= number + 1 < needed:
            so_far = judge_pairs(measured, served, objective, bounds, noise)
            if so_far.high <= _noise_of_mean(noise, most):
                return so_far
    found = judge_pairs(measured, served, objective, bounds, noise)
    undecided = found.low <= found.noise < found.high
    if not undecided or wanted is None or wanted <= len(measured):
        return found
    told = f"as these pairs scatter, about {wanted} would tell the {hoped:+.1%} that the search saw"
    return replace(found, reason=f"{found.reason}; {told} (tuning.confirm_most_pairs)")


def pairs_to_tell(factors: Floats, hoped: float, noise: float) -> int | None:
    """Pairs after which the interval of a gain as hoped ends above the noise, in four of five cases; None for no gain.

    factors: logarithms of those of the pairs so far, whose spread alone is used. hoped: such a logarithm, too. noise:
    of one run.
    """
    if hoped <= 0.0:
        return None
    freedom = len(factors) - 1
    reach = float(stdtrit(freedom, 0.975) + stdtrit(freedom, 0.8)) * float(np.std(factors, ddof=1))
    # Both the interval's half and the noise of the mean shrink with the root of the number of pairs.
    return math.ceil(((reach + _noise_of_mean(noise, 1)) / hoped) ** 2)


def _noise_of_mean(noise: float, pairs: int) -> float:
    """What the mean over pairs of equal runs differs from 0 by. noise: of one run."""
    return noise * math.sqrt(2.0 / pairs)


def _log_factors(pairs: Sequence[Pair], objective: Objective) -> Floats:
    return np.array([objective.log_gain(pair.winner, pair.present) for pair in pairs])


def _pair(
    objective: Objective, present: Sequence[BlockResult], winner: Sequence[BlockResult], *, winner_first: bool
) -> Pair:
    before, after = objective.value(present), objective.value(winner)
    per_block = tuple(zip(objective.per_block(present), objective.per_block(winner), strict=True))
    return Pair(before, after, objective.gain(after, before), per_block, winner_first)


def judge_pairs(
    pairs: Sequence[Pair], served: Sequence[BlockResult], objective: Objective, bounds: Bounds, noise: float
) -> Confirmation:
    """Accept the winner if the lower end of its gain's interval is above the noise and every bound holds.

    Of each pair the logarithm of the factor between its runs counts, so that twice and half weigh the same and one pair
    in which the present configuration broke down does not blow up the interval: the gain is a geometric mean. The
    interval is Student's t over the pairs, with the spread between them, but never less than what resampling the blocks
    within each pair (the same blocks in both runs) shows. The noise of the search adds what its longer look at equal
    runs knows: it is that of one run, and of a mean over pairs smaller. served: the winner's blocks.
    """
    factors = _log_factors(pairs, objective)
    within = float(np.mean([_variance_within(pair, objective, seed) for seed, pair in enumerate(pairs)]))
    estimate, _ = mean_change(factors, within)
    gain, low, high = (
        objective.gain_of_log(float(end or 0.0)) for end in (estimate.value, estimate.low, estimate.high)
    )
    missed = {name: value for name, value in bounds.violations(served, None).items() if value > 0.0}
    kept = attainment(served) if bounds.quantile is not None else None
    floor = _noise_of_mean(noise, len(pairs))
    accepted = low > floor and not missed
    return Confirmation(
        tuple(pairs), gain, low, high, floor, kept, accepted, _reason(low, high, floor, missed, bounds, kept)
    )


def _reason(low: float, high: float, noise: float, missed: dict[str, float], bounds: Bounds, kept: float | None) -> str:
    if "promise" in missed and kept is not None and bounds.quantile is not None:
        return f"only {kept:.1%} of its requests kept the promise, {bounds.quantile:.0%} are to"
    if "errors" in missed:
        return f"more than {bounds.max_errors:.0%} of its requests failed"
    if high <= noise:
        return f"the gain is at most {high:+.1%}, which is not above the noise of {noise:.1%}"
    if low <= noise:
        return f"the gain may be as low as {low:+.1%}, which is not above the noise of {noise:.1%}"
    return f"the gain is at least {low:+.1%}, above the noise of {noise:.1%}"


def _variance_within(pair: Pair, objective: Objective, seed: int) -> float:
    """Variance of the logarithm of the pair's factor by its blocks: a bootstrap over them, in step in both runs."""
    blocks = np.array(pair.per_block)
    if len(blocks) < 2:
        return 0.0
    drawn = np.random.default_rng(seed).integers(0, len(blocks), size=(REPLICATES, len(blocks)))
    means = blocks[drawn].mean(axis=1)
    return float(np.var([objective.log_gain(after, before) for before, after in means]))
