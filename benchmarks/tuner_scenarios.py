"""Scenarios for the online tuner: the workload shifts. The rivals are the best fixed configuration, and no tuner.

Twenty scenarios, each with one shift: the load doubles, prompts become three times as long, prompts begin to share
prefixes, or traffic dies away and returns. Everything is a function of the scenario and its seed. Variants of the
twenty have other traffic, more or less of it, and other configured values. They show a tuner that was fitted to the
twenty.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from muai_lab.simulation.step_time import StepTime
from muai_lab.simulation.traffic import SimulatedRequest
from muai_lab.simulation.tuned import Setup, SimulatedOutcome, Tuning, simulate
from muai_lab.stack.events import Tuned
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.online.knobs import Knob, KnobBounds, Reach, Values
from muai_lab.stack.online.window import Targets

INTERVAL_S = 60.0
WINDOW_S = 300.0
SHIFT = 12
"""The interval in which the shift comes."""
ADAPTED = 10
"""Intervals after the shift within which the tuner is to have found its way."""
LENGTH = SHIFT + ADAPTED + 12
"""Intervals of a scenario."""

SLOTS = 64
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_VARIANTS_APART = 1000  # between the seeds of two variants
_WARM_UP = 2  # intervals before the shift that fixed configurations are given

GPU_LIKE = StepTime(
    prefill_s=0.006,
    prefill_token_s=0.00008,
    prefill_pair_s=1e-9,
    decode_s=0.016,
    decode_sequence_s=0.00008,
    decode_position_s=2.5e-7,
    copy_position_s=5e-7,
)
"""Not measured: the orders of magnitude of a model of 7 billion parameters in 16 bits on one large GPU.

Reading 14 GB of weights at about 1 TB/s bounds a decode step from below, whatever the batch; a key/value position of
about 0.25 MB costs 0.25 µs to read, and twice that to copy; a prompt token's 14 GFLOP at about 200 TFLOP/s cost 80 µs.
"""
CPU_LIKE = StepTime(
    prefill_s=0.012,
    prefill_token_s=0.00021,
    prefill_pair_s=0.0,
    decode_s=0.0048,
    decode_sequence_s=0.0002,
    decode_position_s=2e-6,
    copy_position_s=3e-6,
)
"""The embedded chat model on two cores that do much else: three to four times as slow as with the cores to itself."""
POSITION_BYTES = {GPU_LIKE: 2**18, CPU_LIKE: 2**12}
"""Of the keys and values of one position."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Poisson arrivals with lengths that are uniform between two bounds (tokens).

    rate: requests per second. prefixes: how many different prefixes there are, 0 for none; each prompt begins with one
    of them, of `prefix_tokens` tokens.
    """

    rate: float
    prompt: tuple[int, int]
    output: tuple[int, int]
    prefixes: int = 0
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One shift. quiet: intervals without traffic between the two. home: what is configured.

    variant: 0 for the scenario as it is written below.
    """

    name: str
    seed: int
    setup: Setup
    home: Values
    before: Traffic
    after: Traffic
    bounds: KnobBounds
    quiet: int = 0
    variant: int = 0

    def requests(self) -> Iterator[SimulatedRequest]:
        """All requests, in the order of their arrival."""
        draw = random.Random(self.seed + _VARIANTS_APART * self.variant)
        numbers = itertools.count()
        shift_s = SHIFT * INTERVAL_S
        yield from _poisson(self.before, 0.0, shift_s - self.quiet * INTERVAL_S, draw, numbers)
        yield from _poisson(self.after, shift_s, LENGTH * INTERVAL_S, draw, numbers)

    def varied(self, variant: int) -> Scenario:
        """The same shift with other traffic, up to 15 % more or less of it, from a neighbouring batch size."""
        draw = random.Random(f"{self.seed} {variant}")
        factor = draw.uniform(0.85, 1.15)
        batches = [batch for batch in BATCHES if self.bounds.reaches[Knob.BATCH].clip(batch) == batch]
        near = batches.index(self.home.max_batch_size) + draw.choice((-1, 0, 1))
        return replace(
            self,
            home=self.home.with_(Knob.BATCH, batches[min(max(near, 0), len(batches) - 1)]),
            before=replace(self.before, rate=factor * self.before.rate),
            after=replace(self.after, rate=factor * self.after.rate),
            variant=variant,
        )

    def grid(self) -> Iterator[Values]:
        """Every fixed configuration that the tuner could have come to, and the configured one."""
        axes = []
        for knob in Knob:
            reach = self.bounds.reaches.get(knob)
            values = {self.home.of(knob)}
            if reach is not None:
                values |= {value for value in _grid(knob, reach) if reach.low <= value <= reach.high}
            axes.append(sorted(values))
        for batch, timeout, cache in itertools.product(*axes):
            yield Values(batch, timeout, cache)


def _grid(knob: Knob, reach: Reach) -> tuple[int, ...]:
    if knob is Knob.BATCH:
        return BATCHES
    if knob is Knob.TIMEOUT:
        return (0, 25, 50, 100, 200, 400, 800, reach.high)
    return (0, reach.high // 4, reach.high)


def _poisson(
    traffic: Traffic, begin_s: float, end_s: float, draw: random.Random, numbers: Iterator[int]
) -> Iterator[SimulatedRequest]:
    at_s = begin_s
    while (at_s := at_s + draw.expovariate(traffic.rate)) < end_s:
        prefix = draw.randrange(traffic.prefixes) if traffic.prefixes else None
        prompt, output = draw.randint(*traffic.prompt), draw.randint(*traffic.output)
        yield SimulatedRequest(next(numbers), at_s, prompt, output, prefix, traffic.prefix_tokens)


def scenarios(variant: int = 0) -> list[Scenario]:
    """The twenty, or a variant of them."""
    twenty = [*_load_doubles(), *_prompts_triple(), *_sharing_appears(), *_traffic_returns()]
    return [scenario.varied(variant) for scenario in twenty] if variant else twenty


def _scenario(
    name: str,
    seed: int,
    step_time: StepTime,
    batch: int,
    targets: Targets,
    before: Traffic,
    after: Traffic,
    *,
    queue_capacity: int = 100,
    min_batch: int = 1,
    timeout_ms: int = 50,
    cache_mb: tuple[int, int] | None = None,
    quiet: int = 0,
) -> Scenario:
    """cache_mb: configured, and how far it may be raised; None for an engine without a prefix cache."""
    reaches = {Knob.BATCH: Reach(min_batch, SLOTS)}
    if min_batch > 1:
        reaches[Knob.TIMEOUT] = Reach(0, 4 * timeout_ms)
    if cache_mb:
        reaches[Knob.CACHE] = Reach(0, cache_mb[1])
    position_bytes = POSITION_BYTES[step_time] if cache_mb else 0
    limits = BatchLimits(SLOTS, min_batch)
    setup = Setup(step_time, limits, SLOTS, targets, queue_capacity, position_bytes=position_bytes)
    home = Values(batch, timeout_ms, cache_mb[0] if cache_mb else 0)
    return Scenario(name, seed, setup, home, before, after, KnobBounds(reaches), quiet)


def _load_doubles() -> Iterator[Scenario]:
    name, chat = "load doubles", Targets(ttft_s=1.0, tpot_s=0.05)
    gpu = Traffic(1.5, (100, 300), (50, 250))
    cpu = Traffic(4.0, (30, 150), (20, 100))
    yield _scenario(name, 1, GPU_LIKE, 8, chat, gpu, replace(gpu, rate=3.0))
    yield _scenario(name, 2, GPU_LIKE, 32, chat, gpu, replace(gpu, rate=3.0))
    yield _scenario(name, 3, CPU_LIKE, 4, chat, cpu, replace(cpu, rate=8.0))
    pace = Targets(tpot_s=0.024)
    yield _scenario(name, 4, GPU_LIKE, 64, pace, replace(gpu, rate=5.0), replace(gpu, rate=10.0), queue_capacity=50)
    yield _scenario(name, 5, GPU_LIKE, 12, chat, replace(gpu, rate=2.5), replace(gpu, rate=5.0))


def _prompts_triple() -> Iterator[Scenario]:
    name, chat = "prompts triple", Targets(ttft_s=1.5, tpot_s=0.06)
    cpu = Traffic(3.0, (60, 180), (40, 160))
    gpu = Traffic(4.0, (200, 600), (50, 250))
    yield _scenario(name, 6, CPU_LIKE, 6, chat, cpu, replace(cpu, prompt=(180, 540)))
    yield _scenario(name, 7, CPU_LIKE, 32, chat, cpu, replace(cpu, prompt=(180, 540)))
    slower = replace(gpu, rate=3.0)
    yield _scenario(name, 8, GPU_LIKE, 12, chat, slower, replace(slower, prompt=(600, 1800)))
    pace = Targets(tpot_s=0.026)
    yield _scenario(name, 9, GPU_LIKE, 64, pace, gpu, replace(gpu, prompt=(600, 1800)), queue_capacity=50)
    yield _scenario(name, 10, CPU_LIKE, 4, chat, cpu, replace(cpu, prompt=(180, 540)), min_batch=3, timeout_ms=400)


def _sharing_appears() -> Iterator[Scenario]:
    name, chat = "prefix sharing appears", Targets(ttft_s=1.0, tpot_s=0.05)
    gpu, cpu = Traffic(6.0, (100, 300), (50, 250)), Traffic(8.0, (30, 150), (20, 100))
    with_system = replace(gpu, prompt=(900, 1300), prefixes=12, prefix_tokens=800)
    yield _scenario(name, 11, GPU_LIKE, 48, chat, gpu, with_system, cache_mb=(1024, 16384))
    few_shots = replace(cpu, prompt=(280, 400), prefixes=30, prefix_tokens=256)
    yield _scenario(name, 12, CPU_LIKE, 16, chat, cpu, few_shots, cache_mb=(16, 256))
    yield _scenario(name, 13, GPU_LIKE, 48, chat, gpu, with_system, cache_mb=(16384, 16384))
    pace = Targets(tpot_s=0.03)
    yield _scenario(name, 14, GPU_LIKE, 64, pace, gpu, with_system, queue_capacity=50, cache_mb=(1024, 16384))
    many = replace(with_system, rate=3.3, prefixes=500)
    yield _scenario(name, 15, GPU_LIKE, 12, chat, replace(gpu, rate=2.0), many, cache_mb=(1024, 4096))


def _traffic_returns() -> Iterator[Scenario]:
    name, chat = "traffic dies away and returns", Targets(ttft_s=1.0, tpot_s=0.05)
    gpu = Traffic(3.0, (100, 300), (50, 250))
    cpu = Traffic(6.0, (30, 150), (20, 100))
    yield _scenario(name, 16, GPU_LIKE, 8, chat, gpu, replace(gpu, rate=4.0), quiet=4)
    yield _scenario(name, 17, GPU_LIKE, 16, chat, gpu, gpu, quiet=4)
    yield _scenario(name, 18, CPU_LIKE, 6, chat, cpu, replace(cpu, rate=9.0), quiet=4)
    hold = Targets(ttft_s=0.5)
    yield _scenario(name, 19, GPU_LIKE, 32, hold, gpu, replace(gpu, rate=1.0), min_batch=4, timeout_ms=800, quiet=4)
    pace = Targets(tpot_s=0.024)
    yield _scenario(name, 20, GPU_LIKE, 64, pace, gpu, replace(gpu, rate=9.0), queue_capacity=50, quiet=4)


@dataclass(frozen=True, slots=True)
class ScenarioVerdict:
    """One scenario's result.

    tuned, untuned, best: good requests per second from `ADAPTED` intervals after the shift to the end, under the tuner,
    without it, and with the best fixed configuration, which `best_values` is. reached: intervals after the shift from
    which on three in a row have 90 % of the best's; None if never. below: most intervals in a row with less than 95 %
    of what the untuned configuration had. kept, reverted: trials.
    """

    scenario: Scenario
    tuned: float
    untuned: float
    best: float
    best_values: Values
    reached: int | None
    below: int
    kept: int
    reverted: int
    outcome: SimulatedOutcome
    untuned_outcome: SimulatedOutcome
    best_good: tuple[int, ...]

    @property
    def share(self) -> float:
        """Of the best fixed configuration's goodput."""
        return self.tuned / self.best if self.best else 1.0


def evaluate(scenario: Scenario) -> ScenarioVerdict:
    """Run the tuner, the configured values and the whole grid."""
    requests = list(scenario.requests())
    tuning = Tuning(scenario.bounds, INTERVAL_S, WINDOW_S)
    tuned = _run(scenario, requests, scenario.home, LENGTH, tuning)
    untuned = _run(scenario, requests, scenario.home, LENGTH)
    # What fixed configurations do before the shift does not matter; they get time to fill.
    skip = SHIFT - _WARM_UP
    later = [
        replace(request, at_s=request.at_s - skip * INTERVAL_S)
        for request in requests
        if request.at_s >= skip * INTERVAL_S
    ]
    later = [replace(request, number=number) for number, request in enumerate(later)]
    late = _WARM_UP + ADAPTED
    fixed = {values: _run(scenario, later, values, LENGTH - skip).good for values in scenario.grid()}
    best_values = max(fixed, key=lambda values: sum(fixed[values][late:]))
    best = fixed[best_values][_WARM_UP:]
    kinds = [event.outcome for event in tuned.decisions if isinstance(event, Tuned)]
    return ScenarioVerdict(
        scenario,
        tuned=_rate(tuned.good[SHIFT + ADAPTED :]),
        untuned=_rate(untuned.good[SHIFT + ADAPTED :]),
        best=_rate(best[ADAPTED:]),
        best_values=best_values,
        reached=_reached(tuned.good[SHIFT:], best),
        below=_longest_below(tuned.good, untuned.good),
        kept=kinds.count("kept"),
        reverted=kinds.count("reverted"),
        outcome=tuned,
        untuned_outcome=untuned,
        best_good=best,
    )


def _run(
    scenario: Scenario,
    requests: list[SimulatedRequest],
    values: Values,
    intervals: int,
    tuning: Tuning | None = None,
) -> SimulatedOutcome:
    return simulate(
        scenario.setup, requests, values, intervals=intervals, interval_s=INTERVAL_S, tuning=tuning, seed=scenario.seed
    )


def _rate(good: tuple[int, ...]) -> float:
    return sum(good) / (len(good) * INTERVAL_S)


def _reached(tuned: tuple[int, ...], best: tuple[int, ...], *, row: int = 3) -> int | None:
    for begin in range(len(tuned) - row + 1):
        if all(tuned[at] >= 0.9 * best[at] for at in range(begin, begin + row)):
            return begin
    return None


def _longest_below(tuned: tuple[int, ...], untuned: tuple[int, ...]) -> int:
    longest = present = 0
    for ours, theirs in zip(tuned, untuned, strict=True):
        present = present + 1 if ours < 0.95 * theirs else 0
        longest = max(longest, present)
    return longest
