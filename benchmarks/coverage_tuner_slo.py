"""Does a configuration keep its SLO in a long run if the tuner says so? A queue with 32 slots near saturation."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.coverage import Table
from muai_lab.arrays import Floats
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.settings.tuning import TuningSettings
from muai_lab.tuning.bench import Bench, Switch
from muai_lab.tuning.block_result import BlockResult, attainment
from muai_lab.tuning.objective import Constraints, objectives_of
from muai_lab.tuning.problem import TuningProblem
from muai_lab.tuning.search_space import SearchSpace
from muai_lab.tuning.slo_proof import Soaks
from muai_lab.tuning.soak import LEAD_IN, Soak, attainment_of, not_kept, soak_of

GOODPUT = objectives_of(LabSettings.model_validate({"slo": {"ttft_ms": 500.0}}))
LOADS, QUANTILES = (0.7, 0.85, 0.9, 0.94, 1.0, 1.05), (0.9, 0.95, 0.99)
SLOTS, SERVICE_S, BOUND_S = 32, 1.0, 0.9
PAIRS, BLOCKS, BLOCK_S, LEAD_IN_S = 6, 5, 4.0, 0.5
_FLOOR_S = 0.05  # time to first token of a request that does not wait
_LONG_S, _LONG_RUNS = 4000.0, 6


def waits(rho: float, lead_s: float, seconds: float, random: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Due times from the start of the window, waits for a slot and ends; from an idle server at the lead-in's start."""
    rate = rho * SLOTS / SERVICE_S
    gaps = random.exponential(1.0 / rate, int(rate * (lead_s + seconds) * 1.3) + 50)
    due = np.cumsum(gaps) - lead_s
    due = due[due < seconds]
    service = random.exponential(SERVICE_S, due.size)
    free, start = [-lead_s] * SLOTS, np.empty_like(due)
    for number, at in enumerate(due.tolist()):
        start[number] = begun = max(free[0], at)
        heapq.heapreplace(free, begun + service[number])
    return due, start - due, start + service


def part(wait: Floats, seconds: float) -> BlockResult:
    """The figures of a part of a window."""
    return BlockResult(seconds, len(wait), int((wait <= BOUND_S).sum()), 0, 0.0)


class QueueArena:
    """An arena whose server is the queue at one load."""

    def __init__(self, rho: float, random: np.random.Generator) -> None:
        self._rho = rho
        self._random = random

    def apply(self, optimization: OptimizationSettings, *, restart: bool = False) -> bool:
        return restart

    def replay(self, block: int) -> BlockResult:
        due, wait, _ = waits(self._rho, LEAD_IN_S, BLOCK_S, self._random)
        return part(wait[due >= 0.0], BLOCK_S)

    def soak(self, number: int, seconds: float, *, rate: float | None = None) -> Soak:
        due, wait, end = waits(self._rho, LEAD_IN * seconds, seconds, self._random)
        edges = np.linspace(0.0, seconds, BLOCKS + 1)
        slices = [part(wait[(due >= low) & (due < high)], high - low) for low, high in pairwise(edges)]
        return soak_of(due, end, (wait + _FLOOR_S) / BOUND_S, slices, seconds)

    def agreement(self) -> None:
        return None

    def serving(self) -> Mapping[str, Any]:
        return {"name": "queue"}

    def close(self) -> None:
        pass


class Notes(dict[str, Any]):
    """Keeps soak windows for as long as the process lasts."""

    def note(self, name: str, value: Any) -> None:
        self[name] = value

    def noted(self, name: str) -> Any:
        return self.get(name)


def said_to_keep(rho: float, quantile: float, random: np.random.Generator) -> bool:
    """True if the tuner accepts this queue, by its soak window in the search and one for each pair after it."""
    arena = QueueArena(rho, random)
    problem = TuningProblem(SearchSpace(()), OptimizationSettings(), GOODPUT, Constraints(quantile))
    soaks = Soaks(Notes(), Bench(problem, arena, Switch(), BLOCKS), TuningSettings())
    seen = soaks.look({})
    if not soaks.keeps(seen):
        return False
    windows = [arena.soak(number, seen.seconds) for number in range(PAIRS)]
    kept = attainment_of(windows, [block for window in windows for block in window.slices])
    return not_kept(windows, kept, quantile) is None


def in_the_long_run(rho: float, random: np.random.Generator) -> float:
    """Share of the requests that meet the SLO in a run of hours."""
    shares = []
    for _ in range(_LONG_RUNS):
        due, wait, _ = waits(rho, _LONG_S / 10.0, _LONG_S, random)
        shares.append(float((wait[due >= 0.0] <= BOUND_S).mean()))
    return float(np.mean(shares))


def table(repeats: int, seed: int) -> Table:
    """A row for each load. repeats: tunings behind each share."""
    rows = []
    for rho in LOADS:
        truth = in_the_long_run(rho, np.random.default_rng((seed, 0)))
        arena = QueueArena(rho, np.random.default_rng((seed, 1)))
        blocks = [[arena.replay(number) for number in range(BLOCKS)] for _ in range(repeats)]
        cells = [f"{rho:g}", f"{truth:.1%}", f"{np.mean([attainment(run) for run in blocks]):.1%}"]
        for place, quantile in enumerate(QUANTILES):
            before = np.mean([attainment([b for run in blocks[at : at + PAIRS] for b in run]) >= quantile
                              for at in range(max(repeats - PAIRS, 1))])  # fmt: skip
            random = [np.random.default_rng((seed, place, repeat)) for repeat in range(repeats)]
            now = np.mean([said_to_keep(rho, quantile, one) for one in random])
            wrong = " (wrong)" if truth < quantile else ""
            cells.append(f"{before:.0%} → {now:.0%}{wrong}")
        rows.append(cells)
    note = (
        f"Share of the tunings that say that a queue keeps its SLO (wait under {BOUND_S:g} s, {SLOTS} slots, answers "
        f"of {SERVICE_S:g} s), before (six runs of {BLOCKS} blocks of {BLOCK_S:g} s from an idle server) → now (soak "
        "windows). "
        f"`wrong`: a long run would break it. {repeats} tunings behind each share."
    )
    columns = (
        "ρ",
        "met in a long run",
        f"met in blocks of {BLOCK_S:g} s",
        *(f"{one:.0%} asked for" for one in QUANTILES),
    )
    return Table(columns, rows, note)
