"""The winner against the present configuration, on load that the search has never seen.

Runs are the samples. A pair is one run of each configuration over the same fresh blocks, each on a server that was
started for it. The order alternates (A B, B A, …), so that a drift of the machine affects both alike.

The number of pairs depends on the variance of the first ones and on the gain that the search saw, never on the observed
gain: optional stopping would produce false positives (Stein's two stages, Annals of Mathematical Statistics 16, 1945,
https://doi.org/10.1214/aoms/1177731088). Only a confirmation that is refused ends early, and it has no interval: pairs
that stop because of their gains are no sample of the gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
from scipy.special import stdtrit

from muai_lab.analysis.comparison import mean_change
from muai_lab.analysis.statistics import REPLICATES
from muai_lab.arrays import Floats
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.agreement import Agreement, not_kept
from muai_lab.tuning.bench import Bench
from muai_lab.tuning.block_result import BlockResult, attainment
from muai_lab.tuning.objective import SLO_VIOLATION, Constraints, Objective
from muai_lab.tuning.problem import TuningProblem
from muai_lab.tuning.soak import Attainment, Missed, Soak, attainment_of, longer_s, missed_by
from muai_lab.tuning.soak import not_kept as slo_not_kept

_FIRST_LOOK = 3  # pairs after which a confirmation may end early


@dataclass(frozen=True, slots=True)
class Pair:
    """The values of both configurations over the same blocks.

    per_block: (present, winner) of each block. present_attainment: Share of the present configuration's requests that
    met the SLO; None without one.
    """

    present: float
    winner: float
    gain: float
    per_block: tuple[tuple[float, float], ...]
    winner_first: bool
    present_attainment: float | None = None


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The outcome of the pairs.

    gain: Geometric mean over the pairs, relative. low, high: Ends of its 95 % interval; None if the pairs ended early,
    since no interval covers then. noise: Standard deviation of the mean over as many pairs of equal configurations, by
    the repeats of the search. attainment: Share of the winner's requests that met the SLO; None without an SLO.
    accepted: True if the winner may be exported. kept: The attainment with its lower bound, and its windows.
    between_starts: Standard deviation of runs of one configuration on servers started anew, by the pairs. blocks,
    block_s: Number of blocks in a run, and their length. agreement: The winner's greedy tokens compared with those of
    fp32, on prompts that the search has never seen; None if there is no such bound. next_pair: Bounds of the gain that
    one further pair shows, in 19 of 20 cases; None if the pairs ended early. present_misses: The attainment of a
    present configuration that misses the SLO, if the winner was accepted because it keeps it; else None. The gain is
    then no statement: a configuration that breaks down has no typical goodput. longer_s: Length, in seconds, that soak
    windows would have needed, if they were too short for the memory of the queue that they showed; else None.
    """

    pairs: tuple[Pair, ...]
    gain: float
    low: float | None
    high: float | None
    noise: float
    attainment: float | None
    accepted: bool
    reason: str
    kept: Attainment | None = None
    between_starts: float | None = None
    blocks: int | None = None
    block_s: float | None = None
    agreement: Agreement | None = None
    next_pair: tuple[float, float] | None = None
    present_misses: Missed | None = None
    longer_s: float | None = None


@dataclass(slots=True)
class WinnerLoad:
    """The load that the winner served.

    soaks: Its soak windows; empty if runs are blocks with a drain between them. agreement: See `Confirmation`.
    """

    blocks: list[BlockResult] = field(default_factory=list)
    soaks: list[Soak] = field(default_factory=list)
    agreement: Agreement | None = None


@dataclass(frozen=True, slots=True)
class PairPlan:
    """The number of pairs of a confirmation.

    pairs: Pairs that are measured at first. most: Pairs that are measured if the first ones scatter too much to tell
    the hoped gain from the noise, unless not even these would do. hoped: The gain that the search saw, relative; None
    if there is none.
    """

    pairs: int
    most: int = 0
    hoped: float | None = None


class ConfirmationWatcher(Protocol):
    """Follows a confirmation."""

    def compared(self, number: int, of: int, pair: Pair) -> None:
        """A pair is done. of: Number of pairs to measure, which may grow."""

    def agreed(self, agreement: Agreement) -> None:
        """The greedy tokens of the winner were compared with those of fp32."""


def confirm(
    bench: Bench,
    present: OptimizationSettings,
    winner: OptimizationSettings,
    plan: PairPlan,
    watcher: ConfirmationWatcher | None = None,
) -> Confirmation:
    """Measure the pairs and judge them.

    Args:
        bench: Its arena opens engines as production does. The comparison of greedy tokens follows the winner's first
            run, if there is such a constraint.
        present: The configuration that runs today.
        winner: The configuration to confirm.
        plan: Number of pairs.
        watcher: Follows the pairs.

    Raises:
        ConfigurationFailed: One of the two does not serve.
        Unmeasurable: The load generator is the bottleneck.
        Interrupted: A stop was requested.
    """
    problem, noise = bench.problem, bench.noise.deviation
    measured: list[Pair] = []
    served = WinnerLoad()
    needed, most = plan.pairs, max(plan.pairs, plan.most)
    wanted: int | None = None
    while (number := len(measured)) < needed:
        pair = _measured_pair(bench, present, winner, number, served)
        measured.append(pair)
        if number + 1 == plan.pairs and plan.hoped is not None:
            hoped = problem.objective.log_of_gain(plan.hoped)
            wanted = pairs_to_tell(_log_factors(measured, problem.objective), hoped, noise)
            if wanted is not None and plan.pairs < wanted <= most:
                needed = wanted
        if watcher is not None:
            watcher.compared(number + 1, needed, pair)
        if not number and problem.constraints.min_agreement is not None:
            served.agreement = bench.arena.agreement()  # of the winner, which serves since its run was the second
            if served.agreement is not None and watcher is not None:
                watcher.agreed(served.agreement)
            if _disagreement(served.agreement, problem.constraints.min_agreement) is not None:
                return replace(judge_pairs(measured, served, problem, noise), low=None, high=None, next_pair=None)
        if _FIRST_LOOK <= number + 1 < needed:
            so_far = judge_pairs(measured, served, problem, noise)
            if so_far.high is not None and so_far.high <= _noise_of_mean(noise, most):
                return _given_up(so_far, needed)
    found = judge_pairs(measured, served, problem, noise)
    if found.accepted:
        return found
    undecided = found.low is not None and found.high is not None and found.low <= found.noise < found.high
    if not undecided or wanted is None or wanted <= len(measured):
        return found
    told = f"as these pairs scatter, about {wanted} would tell the {plan.hoped:+.1%} that the search saw"
    return replace(found, reason=f"{found.reason}; {told} (tuning.confirm_most_pairs)")


def _measured_pair(
    bench: Bench, present: OptimizationSettings, winner: OptimizationSettings, number: int, served: WinnerLoad
) -> Pair:
    """One run of each configuration over the same fresh load; the winner's joins the load that it served."""
    winner_first = number % 2 == 1
    arms = [winner, present] if winner_first else [present, winner]
    runs = [bench.fresh_run(arm, number) for arm in arms]
    (ours, _), (theirs, seen) = (runs[1], runs[0]) if winner_first else (runs[0], runs[1])
    served.blocks.extend(theirs.blocks)
    served.soaks.extend([] if seen is None else [seen])
    pair = _pair(bench.problem.objective, ours.blocks, theirs.blocks, winner_first=winner_first)
    if bench.problem.constraints.quantile is None:
        return pair
    return replace(pair, present_attainment=attainment(ours.blocks))


def _given_up(so_far: Confirmation, needed: int) -> Confirmation:
    done = len(so_far.pairs)
    reason = (
        f"given up after {done} of {needed} pairs: they show {so_far.gain:+.1%}, and even the upper end of their "
        f"interval ({so_far.high:+.1%}) is not above the noise"
    )
    return replace(so_far, low=None, high=None, next_pair=None, accepted=False, reason=reason)


def pairs_to_tell(factors: Floats, hoped: float, noise: float) -> int | None:
    """Return the number of pairs after which the interval of the hoped gain is above the noise, in four of five cases.

    Args:
        factors: Logarithms of the factors of the pairs so far. Only their spread is used.
        hoped: Logarithm of the hoped factor. None is returned if it is no gain.
        noise: Of one run.
    """
    if hoped <= 0.0:
        return None
    freedom = len(factors) - 1
    reach = float(stdtrit(freedom, 0.975) + stdtrit(freedom, 0.8)) * float(np.std(factors, ddof=1))
    # Both the interval's half and the noise of the mean shrink with the root of the number of pairs.
    return math.ceil(((reach + _noise_of_mean(noise, 1)) / hoped) ** 2)


def _noise_of_mean(noise: float, pairs: int) -> float:
    """The standard deviation of the mean over pairs of equal runs. noise: Of one run."""
    return noise * math.sqrt(2.0 / pairs)


def _log_factors(pairs: Sequence[Pair], objective: Objective) -> Floats:
    return np.array([objective.log_gain(pair.winner, pair.present) for pair in pairs])


def _pair(
    objective: Objective, present: Sequence[BlockResult], winner: Sequence[BlockResult], *, winner_first: bool
) -> Pair:
    before, after = objective.value(present), objective.value(winner)
    per_block = tuple(zip(objective.per_block(present), objective.per_block(winner), strict=True))
    return Pair(before, after, objective.gain(after, before), per_block, winner_first)


def judge_pairs(pairs: Sequence[Pair], served: WinnerLoad, problem: TuningProblem, noise: float) -> Confirmation:
    """Accept the winner if every bound holds and the lower end of its gain's interval is above the noise.

    It is also accepted, whatever the interval, if its attainment reaches the SLO's quantile for certain and that of the
    present configuration misses it for certain: near capacity a server breaks down in some runs and not in others, and
    the factor between its goodput and a steady one scatters without limit.

    The gain is a geometric mean: each pair counts with the logarithm of the factor between its runs. Twice and half
    then weigh the same, and one pair in which the present configuration broke down does not widen the interval much.
    The interval is Student's t over the pairs. Its spread is at least the one that resampling the blocks within each
    pair shows. The noise of the search is that of one run, and is smaller for a mean over pairs. The lower bounds of
    attainment (with soak windows) and agreement must reach their limits.

    Args:
        pairs: One or more.
        served: The load that the winner served in them.
        problem: Objective and constraints.
        noise: Of one run, relative standard deviation.
    """
    objective, bounds = problem.objective, problem.constraints
    factors = _log_factors(pairs, objective)
    within = float(np.mean([_variance_within(pair, objective, seed) for seed, pair in enumerate(pairs)]))
    estimate, _ = mean_change(factors, within)
    gain, low, high = (
        objective.gain_of_log(float(end or 0.0)) for end in (estimate.value, estimate.low, estimate.high)
    )
    missed = {name: value for name, value in bounds.violations(served.blocks, served.agreement).items() if value > 0.0}
    kept = None if bounds.quantile is None else attainment_of(served.soaks, served.blocks)
    floor = _noise_of_mean(noise, len(pairs))
    broken = _broken(missed, bounds, kept, served)
    rescued = None if broken is not None or gain <= 0.0 else _rescued(pairs, kept, bounds.quantile)
    found = Confirmation(
        tuple(pairs),
        gain,
        low,
        high,
        floor,
        None if kept is None else kept.value,
        broken is None and (low > floor or rescued is not None),
        broken or (_reason(low, high, floor) if rescued is None or low > floor else _of_rescue(rescued, kept, bounds)),
        kept,
        float(np.std(factors, ddof=1)) / math.sqrt(2.0) if len(factors) > 1 else None,
    )
    return replace(
        found,
        blocks=len(served.blocks) // len(pairs),
        block_s=served.blocks[0].seconds if served.blocks else None,
        agreement=served.agreement,
        next_pair=_of_next_pair(factors, within, objective),
        present_misses=None if low > floor else rescued,
        longer_s=_longer_s(missed, bounds, served),
    )


def _rescued(pairs: Sequence[Pair], kept: Attainment | None, quantile: float | None) -> Missed | None:
    """The attainment of the present configuration if it misses the SLO and the winner keeps it, both for certain."""
    shares = [pair.present_attainment for pair in pairs if pair.present_attainment is not None]
    if kept is None or quantile is None or kept.low < quantile or len(shares) < len(pairs):
        return None
    missed = missed_by(shares)
    return missed if missed is not None and missed.high < quantile else None


def _of_rescue(missed: Missed, kept: Attainment | None, bounds: Constraints) -> str:
    assert kept is not None, "only a winner that keeps the SLO rescues it"
    return (
        f"at least {kept.low:.1%} of its requests meet the SLO, of those of the present configuration at most "
        f"{missed.high:.1%}; {bounds.quantile:.0%} must"
    )


def _of_next_pair(factors: Floats, within: float, objective: Objective) -> tuple[float, float] | None:
    """Bounds of one further pair's gain, in 19 of 20 cases: Student's t prediction from the pairs; None from one.

    within: Variance of a factor by the blocks of its runs, which is the least that is assumed.
    """
    if len(factors) < 2:
        return None
    variance = max(float(np.var(factors, ddof=1)), within)
    reach = float(stdtrit(len(factors) - 1, 0.975)) * math.sqrt(variance * (1.0 + 1.0 / len(factors)))
    middle = float(factors.mean())
    return objective.gain_of_log(middle - reach), objective.gain_of_log(middle + reach)


def _disagreement(found: Agreement | None, least: float) -> str | None:
    return "its greedy tokens were not compared with those of fp32" if found is None else not_kept(found, least)


def _broken(
    missed: Mapping[str, float], bounds: Constraints, kept: Attainment | None, served: WinnerLoad
) -> str | None:
    """The bound that does not hold, in words; None if every one does."""
    soaks, least = served.soaks, bounds.min_agreement
    if least is not None and (reason := _disagreement(served.agreement, least)) is not None:
        return reason
    if kept is not None and bounds.quantile is not None:
        if SLO_VIOLATION in missed:
            return f"only {kept.value:.1%} of its requests met the SLO, and {bounds.quantile:.0%} must"
        if soaks and (reason := slo_not_kept(soaks, kept, bounds.quantile)) is not None:
            return reason
    return f"more than {bounds.max_errors:.0%} of its requests failed" if "errors" in missed else None


def _longer_s(missed: Mapping[str, float], bounds: Constraints, served: WinnerLoad) -> float | None:
    """The length that the soak windows needed, if nothing else is wrong with the winner."""
    if missed or (
        bounds.min_agreement is not None and _disagreement(served.agreement, bounds.min_agreement) is not None
    ):
        return None
    return longer_s(served.soaks)


def _reason(low: float, high: float, noise: float) -> str:
    if high <= noise:
        return f"the gain is at most {high:+.1%}, which is not above the noise of {noise:.1%}"
    if low <= noise:
        return f"the gain may be as low as {low:+.1%}, which is not above the noise of {noise:.1%}"
    return f"the gain is at least {low:+.1%}, above the noise of {noise:.1%}"


@lru_cache(maxsize=256)  # a pair is looked at again whenever another was measured
def _variance_within(pair: Pair, objective: Objective, seed: int) -> float:
    """Variance of the logarithm of the pair's factor by its blocks: a bootstrap over them, in step in both runs."""
    blocks = np.array(pair.per_block)
    if len(blocks) < 2:
        return 0.0
    drawn = np.random.default_rng(seed).integers(0, len(blocks), size=(REPLICATES, len(blocks)))
    means = blocks[drawn].mean(axis=1)
    return float(np.var([objective.log_gain(after, before) for before, after in means]))
