"""The share of the best that the tuner finds in a quarter of the time of an exhaustive measurement.

    python -m benchmarks.tuner_efficiency [--seeds 5] [--rate 28] [--noise 0.1] [--json]

A space of 60 points is measured exhaustively in virtual time: the stack's own scheduler against step times fitted to
the embedded chat model, open loop, TTFT 500 ms and TPOT 50 ms for every request. The truth of each point is its goodput
over many blocks that no search uses. Then three searches get a quarter of the blocks that one whole trial of each point
takes: the tuner (the same code as `tune`), plain TPE (Optuna's defaults, whole trials, fresh load for each, takes the
best that it saw), and random search the same way. The table has the true goodput of each search's result, relative to
the best point's. The tuner then confirms its winner against the present configuration, as `tune` does; "exported" is
the configuration of the file after that: the winner if it was confirmed, else the present one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np
import optuna

from muai_lab.settings.changes import with_values
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.simulation.driver import VirtualDriver
from muai_lab.simulation.engine import VirtualEngine
from muai_lab.simulation.step_time import EMBEDDED_CHAT
from muai_lab.simulation.traffic import SimulatedRequest
from muai_lab.slo import Slo, meets, pace_s
from muai_lab.stack.events import Event, Finished
from muai_lab.stack.limits import batch_limits
from muai_lab.stack.scheduler import Scheduler
from muai_lab.tuning.bench import Bench, Switch
from muai_lab.tuning.block_result import BlockResult
from muai_lab.tuning.confirmation import PairPlan, confirm
from muai_lab.tuning.objective import objectives_of
from muai_lab.tuning.problem import TuningProblem
from muai_lab.tuning.search import Search, SearchBudget
from muai_lab.tuning.search_space import every_point
from muai_lab.tuning.space_file import space_of
from muai_lab.tuning.storage import IN_MEMORY
from muai_lab.tuning.study import Draft, TuningStudy
from muai_lab.tuning.trials import Standing, TrialRecord, point_key

SIZE = "optimization.batcher.max_batch_size"
PREFILL = "optimization.batcher.max_prefill_tokens"
MINIMUM = "optimization.batcher.min_batch_size"
SPACE = space_of(
    {
        SIZE: {"choices": [4, 8, 12, 16, 24, 32]},
        PREFILL: {"choices": [32, 64, 128, 256, 512]},
        MINIMUM: {"choices": [1, 4]},
    }
)
PRESENT = OptimizationSettings.model_validate({"batcher": {"adaptive_batching": False}})
SLO = Slo(ttft_ms=500.0, tpot_ms=50.0)
OBJECTIVE = objectives_of(LabSettings.model_validate({"slo": asdict(SLO)}))[0]
PROBLEM = TuningProblem(SPACE, PRESENT, (OBJECTIVE,))
BLOCK_S, LEAD_IN_S, DRAIN_S = 8.0, 1.0, 10.0
BLOCKS = 5  # of a whole trial
RUN_OFF = 4  # whole trials that the search may need after its time is up: the running one, and the finalists'
TRUTH = range(5_000_000, 5_000_024)  # blocks that only the truth is measured on


class VirtualArena:
    """As `Arena`, in virtual time; spent_s: time under load so far, which is what a real arena would have taken."""

    def __init__(self, rate: float, noise: float, seed: int) -> None:
        self.spent_s = 0.0
        self._rate = rate
        self._noise = noise
        self._seed = seed
        self._runs = 0
        self._serving = PRESENT

    def apply(self, optimization: OptimizationSettings, *, restart: bool = False) -> bool:
        self._serving = optimization
        return restart

    def replay(self, block: int) -> BlockResult:
        self._runs += 1  # every run has its own noise, as a real machine has
        noise_seed = self._seed * 1_000_003 + self._runs
        result = run_block(self._serving, self._rate, self._seed * 10_007 + block, self._noise, noise_seed)
        self.spent_s += LEAD_IN_S + BLOCK_S
        return result

    def agreement(self) -> None:
        return None

    def serving(self) -> Mapping[str, Any]:
        return {"name": "virtual"}

    def close(self) -> None:
        pass


class Finishes:
    """An observer that keeps how requests ended."""

    def __init__(self) -> None:
        self.finished: list[Finished] = []

    def observe(self, events: Sequence[Event]) -> None:
        self.finished.extend(event for event in events if isinstance(event, Finished))


def run_block(optimization: OptimizationSettings, rate: float, seed: int, noise: float, noise_seed: int) -> BlockResult:
    """One block of Poisson arrivals; seed: of the load, noise_seed: of the machine."""
    drawn = np.random.default_rng(seed)
    end_s = LEAD_IN_S + BLOCK_S
    times = np.cumsum(drawn.exponential(1.0 / rate, size=int(rate * end_s * 2) + 20))
    prompts, outputs = drawn.integers(16, 129, size=len(times)), drawn.integers(8, 49, size=len(times))
    requests = [
        SimulatedRequest(number, float(at_s), int(prompts[number]), int(outputs[number]))
        for number, at_s in enumerate(times)
        if at_s < end_s
    ]
    limits = batch_limits(optimization)
    seen = Finishes()
    engine = VirtualEngine(limits.max_batch_size, EMBEDDED_CHAT, noise=noise, seed=noise_seed)
    driver = VirtualDriver(Scheduler(limits, slots=limits.max_batch_size), engine, observers=[seen])
    driver.offer(requests)
    driver.run(end_s + DRAIN_S)
    due = {request.number: request for request in requests if request.at_s >= LEAD_IN_S}
    met = tokens = 0
    for event in seen.finished:
        request = due.get(int(event.request_id))
        if request is None:
            continue
        tokens += event.output_tokens
        latencies_s = {
            "ttft": event.first_token_at - request.at_s,
            "tpot": pace_s(event.at - event.first_token_at, event.output_tokens),
        }
        met += meets(SLO.bounds_s, latencies_s, event.output_tokens)
    return BlockResult(BLOCK_S, len(due), int(met), 0, float(tokens))


class Silent:
    """A watcher that says nothing."""

    def begins(self, draft: Draft) -> None:
        pass

    def ended(self, record: TrialRecord, best: Standing | None, done: int) -> None:
        pass


class Truth:
    """The goodput of every point, over blocks that no search sees."""

    def __init__(self, rate: float, noise: float) -> None:
        self.points = list(every_point(SPACE, PRESENT))
        self._by_point = {
            point_key(point): OBJECTIVE.value(
                [run_block(with_values(PRESENT, point), rate, block, noise, noise_seed=block) for block in TRUTH]
            )
            for point in self.points
        }
        self.best = max(self._by_point.values())
        self.present = self.of(SPACE.point_of(PRESENT))

    def of(self, point: Mapping[str, Any]) -> float:
        """The true goodput of a point."""
        return self._by_point[point_key(point)]

    @property
    def all(self) -> list[float]:
        """Every point's goodput, best first."""
        return sorted(self._by_point.values(), reverse=True)


def tuner(arena: VirtualArena, budget_s: float, seed: int) -> tuple[Mapping[str, Any], Mapping[str, Any], float]:
    """The point that the search ends with, the one that is exported, and the time of the search."""
    study = TuningStudy.open(IN_MEMORY, "virtual", {}, PROBLEM, startup_trials=6, seed=seed)
    bench = Bench(PROBLEM, arena, Switch(), BLOCKS)
    budget = SearchBudget(
        n_trials=1000,
        timeout_s=budget_s - RUN_OFF * BLOCKS * (LEAD_IN_S + BLOCK_S),
        patience=1000,
        startup_trials=6,
        incumbent_every=12,
        pruning=True,
    )
    search = Search(study, bench, budget, Silent(), clock=lambda: arena.spent_s)
    search.run()
    searched_s = arena.spent_s
    best = search.best()
    assert best is not None, "the present configuration was measured at least"
    winner = with_values(PRESENT, best.point)
    measuring = replace(bench, noise=search.noise().of_runs)
    found = confirm(measuring, PRESENT, winner, PairPlan(6))
    return best.point, best.point if found.accepted else SPACE.point_of(PRESENT), searched_s


def whole_trials(make_sampler: Callable[[int], optuna.samplers.BaseSampler]) -> Callable[..., Mapping[str, Any]]:
    """A search of whole trials on fresh load that takes the best figure it saw."""

    def search(arena: VirtualArena, budget_s: float, seed: int) -> Mapping[str, Any]:
        study = optuna.create_study(direction="maximize", sampler=make_sampler(seed))
        trial_s = BLOCKS * (LEAD_IN_S + BLOCK_S)
        number = 0
        while arena.spent_s + trial_s <= budget_s:
            trial = study.ask()
            arena.apply(with_values(PRESENT, SPACE.suggest(trial, PRESENT)))
            blocks = [arena.replay(1000 * number + block) for block in range(BLOCKS)]
            study.tell(trial, OBJECTIVE.value(blocks))
            number += 1
        return study.best_trial.params

    return search


@cache
def _searches() -> dict[str, Callable[..., Mapping[str, Any]]]:
    return {
        "plain TPE": whole_trials(lambda seed: optuna.samplers.TPESampler(seed=seed)),
        "random search": whole_trials(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All searches over all seeds."""
    truth = Truth(options.rate, options.noise)
    exhaustive_s = len(truth.points) * BLOCKS * (LEAD_IN_S + BLOCK_S)
    budget_s = exhaustive_s / 4.0
    reached: dict[str, list[float]] = {"tuner": [], "exported": [], **{name: [] for name in _searches()}}
    spent: dict[str, list[float]] = {name: [] for name in reached}
    for seed in range(options.seeds):
        random.seed(seed)
        arena = VirtualArena(options.rate, options.noise, seed)
        found, exported, searched_s = tuner(arena, budget_s, seed)
        reached["tuner"].append(truth.of(found) / truth.best)
        spent["tuner"].append(searched_s / exhaustive_s)
        reached["exported"].append(truth.of(exported) / truth.best)
        spent["exported"].append(arena.spent_s / exhaustive_s)
        for name, search in _searches().items():
            arena = VirtualArena(options.rate, options.noise, seed)
            reached[name].append(truth.of(search(arena, budget_s, seed)) / truth.best)
            spent[name].append(arena.spent_s / exhaustive_s)
    return {
        "points": len(truth.points),
        "best": truth.best,
        "present": truth.present / truth.best,
        "within_95": sum(value >= 0.95 * truth.best for value in truth.all),
        "median": statistics.median(truth.all) / truth.best,
        "reached": reached,
        "spent": spent,
        "seeds": options.seeds,
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=28.0, help="requests per second")
    parser.add_argument("--noise", type=float, default=0.1, help="relative standard deviation of a step")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    result = measure(options)
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    say = sys.stdout.write
    say(f"{result['points']} points, the best {result['best']:.2f} requests/s; relative to it: ")
    say(f"present {result['present']:.1%}, median point {result['median']:.1%}; {result['within_95']} reach 95 %\n")
    say(f"{'':<16}{'worst':>9}{'median':>9}{'best':>9}{'time':>9}  of {result['seeds']} seeds\n")
    for name, values in result["reached"].items():
        time = max(result["spent"][name])
        row = f"{min(values):>9.1%}{statistics.median(values):>9.1%}{max(values):>9.1%}{time:>9.1%}"
        say(f"{name:<16}{row}\n")
    say("goal: at least 95 % of the best at 25 % of the exhaustive time\n")


if __name__ == "__main__":
    main()
