"""Virtual time: the real scheduler against a model of step times."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.engines.base import PrefillChunk
from muai_lab.simulation.driver import VirtualDriver
from muai_lab.simulation.engine import VirtualEngine
from muai_lab.simulation.step_time import EMBEDDED_CHAT, StepTime, StepWork
from muai_lab.simulation.traffic import SimulatedRequest
from muai_lab.stack.events import Admitted, CacheLookup, CacheState, Event, Finished, Queued, Rejected, Step, Token
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.plan import Plan
from muai_lab.stack.prefix_cache import PrefixCache
from muai_lab.stack.scheduler import Scheduler

FLAT = StepTime(
    prefill_s=1.0,
    prefill_token_s=0.0,
    prefill_pair_s=0.0,
    decode_s=0.1,
    decode_sequence_s=0.0,
    decode_position_s=0.0,
)


class EventLog:
    """An observer that keeps every event as a line of text (floats in full precision), in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def observe(self, events: Sequence[Event]) -> None:
        self.lines.extend(map(repr, events))


class Seen:
    """Keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, events: Sequence[Event]) -> None:
        self.events.extend(events)

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def driver(
    *observers: Seen | EventLog,
    cache: PrefixCache | None = None,
    slots: int = 4,
    step_time: StepTime = FLAT,
    capacity: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
    **limits: float,
) -> VirtualDriver:
    scheduler = Scheduler(BatchLimits(slots, **limits), slots=slots, cache=cache)  # type: ignore[arg-type]
    block_bytes = 0 if cache is None else cache.block_bytes
    engine = VirtualEngine(slots, step_time, noise=noise, seed=seed, block_bytes=block_bytes)
    return VirtualDriver(scheduler, engine, observers=observers, queue_capacity=capacity)


def poisson(rate: float, seed: int, until_s: float, prefixes: int = 0) -> Iterator[SimulatedRequest]:
    draw = random.Random(seed)
    at_s, number = 0.0, 0
    while (at_s := at_s + draw.expovariate(rate)) < until_s:
        prefix = draw.randrange(prefixes) if prefixes else None
        yield SimulatedRequest(number, at_s, draw.randint(1, 300), draw.randint(1, 100), prefix, 40)
        number += 1


def test_a_request_takes_its_prefill_and_a_step_for_each_further_token() -> None:
    seen = Seen()
    simulation = driver(seen)
    simulation.offer([SimulatedRequest(0, 2.0, prompt_tokens=5, output_tokens=3)])

    simulation.run()

    (end,) = seen.of(Finished)
    assert (end.queued_at, end.admitted_at, end.first_token_at, end.at) == pytest.approx((2.0, 2.0, 3.0, 3.2))
    assert [event.at for event in seen.of(Token)] == pytest.approx([3.0, 3.1, 3.2])
    assert simulation.now == pytest.approx(3.2)


def test_what_arrives_during_a_step_joins_at_its_end_and_the_others_go_on_decoding() -> None:
    seen = Seen()
    simulation = driver(seen)
    simulation.offer([SimulatedRequest(0, 0.0, 5, 3), SimulatedRequest(1, 0.5, 5, 1)])

    simulation.run()

    assert [(event.request_id, event.at) for event in seen.of(Queued)] == [("0", 0.0), ("1", 1.0)]
    assert [step.batch for step in seen.of(Step)] == [1, 2, 1]
    assert [step.at for step in seen.of(Step)] == pytest.approx([1.0, 2.1, 2.2])


def test_a_hold_ends_at_its_time_although_nothing_happens() -> None:
    seen = Seen()
    simulation = driver(seen, min_batch_size=3, timeout_s=0.25)
    simulation.offer([SimulatedRequest(0, 1.0, 5, 1)])

    simulation.run()

    (joined,) = seen.of(Admitted)
    assert joined.at == 1.25


def test_a_full_queue_rejects() -> None:
    seen = Seen()
    simulation = driver(seen, slots=1, capacity=2)
    simulation.offer(SimulatedRequest(number, number * 0.01, 5, 100) for number in range(5))

    simulation.run()

    assert len(seen.of(Rejected)) == 2  # one runs, two wait
    assert len(seen.of(Finished)) == 3


def test_actions_come_in_the_order_of_their_times_and_periods_do_not_drift() -> None:
    simulation = driver()
    calls: list[tuple[str, float]] = []
    simulation.at(0.5, lambda now: calls.append(("late", now)))
    simulation.at(0.25, lambda now: calls.append(("early", now)))
    simulation.at(0.5, lambda now: calls.append(("second", now)))
    simulation.every(1.0, lambda now: calls.append(("tick", now)))
    simulation.offer([SimulatedRequest(0, 1.5, 5, 1)])  # its step, from 1.5 to 2.5, keeps the second tick waiting

    simulation.run(until_s=3.5)

    assert calls == [("early", 0.25), ("late", 0.5), ("second", 0.5), ("tick", 1.0), ("tick", 2.5), ("tick", 3.0)]
    assert simulation.now == 3.5


def test_a_cached_prefix_is_copied_instead_of_computed_and_both_take_their_time() -> None:
    seen = Seen()
    per_token = StepTime(0.0, 1.0, 0.0, 0.0, 0.0, 0.0, copy_position_s=0.125)
    simulation = driver(seen, step_time=per_token, cache=PrefixCache(1000, block_bytes=10))
    simulation.offer(SimulatedRequest(number, 100.0 * number, 40, 1, prefix=3, prefix_tokens=35) for number in (0, 1))

    simulation.run()

    assert [event.cached_tokens for event in seen.of(CacheLookup)] == [0, 32]  # two whole blocks of 16 tokens
    first, second = seen.of(Finished)
    assert first.at == pytest.approx(40.0)
    assert second.at == pytest.approx(100.0 + 32 * 0.125 + 8)
    assert seen.of(CacheState)[-1].blocks == 2


def test_a_larger_cache_serves_more_of_the_shared_prefixes() -> None:
    def cached(blocks: int) -> int:
        seen = Seen()
        simulation = driver(seen, step_time=EMBEDDED_CHAT, cache=PrefixCache(blocks * 8, block_bytes=8))
        draw = random.Random(1)
        simulation.offer(
            SimulatedRequest(number, number / 4, 100, 8, prefix=draw.randrange(10), prefix_tokens=64)
            for number in range(200)
        )
        simulation.run()
        assert all(state.stored_bytes <= blocks * 8 for state in seen.of(CacheState))
        return sum(event.cached_tokens for event in seen.of(CacheLookup))

    none, small, large = cached(0), cached(30), cached(200)

    assert none == 0 < small < 0.7 * large
    assert large == 190 * 64


def test_the_same_seed_gives_the_same_log_byte_for_byte_and_another_seed_another() -> None:
    def log(seed: int) -> EventLog:
        kept = EventLog()
        cache = PrefixCache(400, block_bytes=8)
        simulation = driver(kept, slots=8, step_time=EMBEDDED_CHAT, cache=cache, capacity=20, noise=0.1, seed=seed)
        simulation.offer(poisson(8.0, seed=seed, until_s=20.0, prefixes=5))
        simulation.run()
        return kept

    first, again, other = log(1), log(1), log(2)

    assert first.lines == again.lines != other.lines
    assert len(first.lines) > 1000
    assert any(line.startswith("CacheLookup(") and not line.endswith("cached_tokens=0)") for line in first.lines)


def test_noise_spreads_durations_and_leaves_their_mean() -> None:
    noisy = VirtualEngine(1, FLAT, noise=0.2, seed=3)

    took = [noisy.step(Plan(decode=(0,)))[1] for _ in range(4000)]

    mean = sum(took) / len(took)
    deviation = (sum((value - mean) ** 2 for value in took) / len(took)) ** 0.5
    assert mean == pytest.approx(0.1, rel=0.02)
    assert deviation / mean == pytest.approx(0.2, rel=0.1)


def test_the_engine_attends_to_every_position_that_a_slot_holds() -> None:
    pairs = StepTime(0.0, 0.0, 1.0, 0.0, 0.0, 1.0)  # seconds = positions attended to
    engine = VirtualEngine(2, pairs)

    whole = engine.step(Plan(prefill=(PrefillChunk(0, range(4)),)))
    piece = engine.step(Plan(prefill=(PrefillChunk(1, range(2), start=3, final=False),), decode=(0,)))
    after = engine.step(Plan(release=(1,), decode=(0,)))

    assert whole == ({0: 0}, 1 + 2 + 3 + 4)
    assert piece == ({0: 0}, (4 + 5) + 5)  # two tokens after three held positions, and the fifth of slot 0
    assert after == ({0: 0}, 6)


def test_a_shared_prefix_is_the_same_tokens_and_the_rest_is_not() -> None:
    one, other = (SimulatedRequest(number, 0.0, 10, 1, prefix=7, prefix_tokens=6).prompt() for number in (0, 1))

    assert len(one) == len(other) == 10
    assert list(one[:6]) == list(other[:6])
    assert all(mine != theirs for mine, theirs in zip(one[6:], other[6:], strict=True))
    assert len(SimulatedRequest(2, 0.0, 4, 1, prefix=7, prefix_tokens=6).prompt()) == 4


COEFFICIENTS = st.floats(1e-6, 1e-2)


@given(st.builds(StepTime, *[COEFFICIENTS] * 7), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_a_fit_finds_the_model_that_made_the_steps(model: StepTime, draw: random.Random) -> None:
    works = [
        StepWork(prefill_tokens=n, prefill_pairs=draw.randint(n, 4 * n))
        for n in (draw.randint(1, 99) for _ in range(20))
    ]
    works += [
        StepWork(decode_sequences=n, decode_positions=draw.randint(n, 9 * n))
        for n in (draw.randint(1, 64) for _ in range(20))
    ]
    works += [StepWork(copied_positions=16 * n) for n in range(1, 9)]

    fitted = StepTime.fit(works, [model.seconds(work) for work in works])

    for work in works:
        assert fitted.seconds(work) == pytest.approx(model.seconds(work), rel=1e-3)


def test_a_feature_that_seems_to_save_time_counts_nothing() -> None:
    works = [StepWork(decode_sequences=n, decode_positions=n * (10 + n % 3)) for n in range(1, 30)]
    faster_when_longer = StepTime(0.0, 0.0, 0.0, 0.01, 0.002, -1e-5)

    fitted = StepTime.fit(works, [faster_when_longer.seconds(work) for work in works])

    assert fitted.decode_position_s == 0.0
    assert fitted.decode_sequence_s > 0.0


def test_too_few_steps_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="3 steps cannot fit 7 coefficients"):
        StepTime.fit([StepWork(1, 1)] * 3, [0.1] * 3)


@given(rate=st.floats(0.5, 40.0), slots=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_every_request_ends_once_whatever_the_load(rate: float, slots: int, seed: int) -> None:
    seen = Seen()
    simulation = driver(seen, slots=slots, step_time=EMBEDDED_CHAT, capacity=5, min_batch_size=min(2, slots))
    requests = list(poisson(rate, seed, until_s=8.0))
    simulation.offer(requests)

    simulation.run()

    ended = [event.request_id for event in seen.of(Finished)]
    assert len(set(ended)) == len(ended)
    assert len(ended) + len(seen.of(Rejected)) == len(requests)
    assert simulation.scheduler.free_slots == slots
    times = [event.at for event in seen.events]
    assert times == sorted(times)
