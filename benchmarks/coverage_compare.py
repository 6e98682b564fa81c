"""Comparisons of simulated runs: the shares in which equal configurations differ, and in which a real change is found.

The figures of a run are simulated, not its requests. A run's server is faster or slower than usual by a factor of known
spread, which changes every figure. Each figure also has its own noise within the run. Then `compare`'s own steps
follow: changes, moderation, choice of the primary figure, gatekeeping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from benchmarks.coverage import Table
from muai_lab.analysis.change import BETTER, DEFAULT_NOISE, WORSE, change_of
from muai_lab.analysis.comparison import mean_change
from muai_lab.analysis.judgement import SMALLEST_EFFECT, choose_primary, judged
from muai_lab.analysis.key_figures import FIGURES, FigureReading
from muai_lab.analysis.moderation import Prior, Variance, default_prior, fitted_prior, holm
from muai_lab.arrays import Floats

SPREADS = (0.0, 0.01, 0.02, 0.03, 0.05)
REPEATS = (1, 2, 3, 5)
EFFECTS = (0.0, 0.05, 0.10)
COMPARED = ("p50 ttft", "p99 ttft", "p50 tpot", "p50 e2e", "p99 e2e", "requests", "tokens")
WITHIN = 0.004
EARLIER = 8
"""Comparisons of three repeats each that the history holds."""

BEFORE: Mapping[tuple[float, int], str] = MappingProxyType(
    {
        (0.01, 2): "3%", (0.01, 3): "1%", (0.01, 5): "0%", (0.02, 2): "9%", (0.02, 3): "11%", (0.02, 5): "5%",
        (0.03, 2): "22%", (0.03, 3): "13%", (0.03, 5): "11%", (0.05, 2): "21%", (0.05, 3): "11%", (0.05, 5): "7%",
    }
)  # fmt: skip
"""False alarms on a machine noisier than its history, when that gave way only to a contradiction."""
NOISIER = 3.0
"""How many times as noisy as in its history the machine of the last column is."""

_REPLICATES = 40
_OLD_NOISE = 0.02
_DEFAULT = default_prior(DEFAULT_NOISE["ratio"])

Pairs = dict[str, list[tuple[FigureReading, FigureReading]]]


def simulated(rng: np.random.Generator, spread: float, effect: float, repeats: int) -> Pairs:
    """Readings of pairs of closed-loop runs. effect: by how much B's server is faster."""

    def run(speed: float) -> dict[str, FigureReading]:
        speed *= math.exp(spread * rng.standard_normal())
        readings = {}
        for name in COMPARED:
            value = speed if FIGURES[name].better == "higher" else 1.0 / speed
            noise = np.exp(WITHIN * rng.standard_normal(_REPLICATES + 1))
            readings[name] = FigureReading(value * noise[0], value * noise[0] * noise[1:], 600)
        return readings

    pairs = [(run(1.0), run(1.0 + effect)) for _ in range(repeats)]
    return {name: [(a[name], b[name]) for a, b in pairs] for name in COMPARED}


def history(rng: np.random.Generator, spread: float) -> Prior:
    """The prior of a machine that has made `EARLIER` comparisons; each has a noise of its own."""
    sds = np.hypot(spread, WITHIN) * np.exp(0.3 * rng.standard_normal(EARLIER))
    return fitted_prior([Variance(float(sd**2 * rng.chisquare(2.0) / 2.0), 2.0) for sd in sds], _DEFAULT)


def shows_difference(pairs: Pairs, prior: Prior) -> bool:
    """True if the verdict is better or worse; from one run each, if a condition without slack is broken."""
    differences = [change_of(FIGURES[name], both, lambda _: prior) for name, both in pairs.items()]
    primary, why = choose_primary(differences, closed=True, slo=False)
    found = judged(differences, primary, why)
    first = next(one for one in found.differences if one.figure.name == primary)
    if first.pairs == 1:
        return first.p is not None and first.p <= 0.05
    return found.verdict in (BETTER, WORSE)


def showed_difference(pairs: Pairs) -> bool:
    """True if any figure differed by the earlier rule: t of the pairs alone, all figures adjusted for each other."""

    def change(both: Sequence[tuple[FigureReading, FigureReading]]) -> tuple[Floats, float]:
        values = np.log(np.array([[one.value for one in pair] for pair in both]))
        draws = [
            np.log(b.replicates) - np.log(a.replicates)
            for a, b in both
            if a.replicates is not None and b.replicates is not None
        ]
        return values[:, 1] - values[:, 0], float(np.mean([draw.var() for draw in draws]))

    judged_alone = [mean_change(*change(both), _OLD_NOISE) for both in pairs.values()]
    adjusted = holm([p for _, p in judged_alone])
    return any(
        p <= 0.05 and abs(math.expm1(estimate.value or 0.0)) >= SMALLEST_EFFECT
        for (estimate, _), p in zip(judged_alone, adjusted, strict=True)
    )


def shares(rng: np.random.Generator, spread: float, effect: float, repeats: int, tries: int) -> tuple[float, ...]:
    """Shares of comparisons that show a difference: by the earlier rule, without history, with history."""
    found = np.zeros(3)
    for _ in range(tries):
        pairs = simulated(rng, spread, effect, repeats)
        found += (
            showed_difference(pairs),
            shows_difference(pairs, _DEFAULT),
            shows_difference(pairs, history(rng, spread)),
        )
    return tuple(found / tries)


def false_alarms(rng: np.random.Generator, spread: float, repeats: int, tries: int) -> float:
    """Share of comparisons of equal configurations that show a difference, on a machine noisier than its history."""
    found = [
        shows_difference(simulated(rng, spread, 0.0, repeats), history(rng, spread / NOISIER)) for _ in range(tries)
    ]
    return float(np.mean(found))


def table(repeats: int, seed: int) -> Table:
    """A row for each spread between runs and number of repeats. repeats: simulated comparisons behind each figure."""
    rng = np.random.default_rng(seed)
    rows = []
    for spread in SPREADS:
        for number in REPEATS:
            cells = [
                " / ".join(f"{share:.0%}" for share in shares(rng, spread, effect, number, repeats))
                for effect in EFFECTS
            ]
            before = BEFORE.get((spread, number))
            cells.append("-" if before is None else f"{before} → {false_alarms(rng, spread, number, repeats):.0%}")
            rows.append([f"{spread:.0%}", str(number), *cells])
    note = (
        f"Shares of {repeats} simulated comparisons that show a difference: by the earlier rule (assumed noise of 2 %, "
        f"Holm over all figures) / now, without history / now, with a history of {EARLIER} comparisons of three "
        "repeats. From one run each there is no verdict now; the third figure is then that of a condition of --fail-on."
        f" Last column: no change, on a machine {NOISIER:g} times as noisy as its history, before → now."
    )
    columns = ("runs differ by", "repeats", "no change", "+5 %", "+10 %", "noisier than its history")
    return Table(columns, rows, note)
