"""The running limit of adaptive batching, told what steps looked like and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from muai_lab.stack.adaptive import FixedLimit, LatencyLimit, RunningLimit, StepSeen, ThroughputLimit, running_limit
from muai_lab.stack.limits import BatchLimits

TARGET_S = 0.020


def latency_limits(most: int = 32, least: int = 1) -> BatchLimits:
    return BatchLimits(most, least, adaptive=True, latency_target_s=TARGET_S)


def throughput_limits(most: int = 32, least: int = 1) -> BatchLimits:
    return BatchLimits(most, least, adaptive=True)


def drive(
    limit: RunningLimit, step_s: Callable[[int], float], steps: int, *, waited: bool = True, running: int | None = None
) -> list[int]:
    """Steps whose length depends on how many sequences run; the batch is always as full as the limit allows."""
    now, seen = 0.0, []
    for _ in range(steps):
        batch = limit.current if running is None else min(running, limit.current)
        took_s = step_s(batch)
        limit.observe(StepSeen(now, now + took_s, batch, batch, waited), [took_s] * batch)
        now += took_s
        seen.append(limit.current)
    return seen


def test_without_adaptive_batching_the_limit_is_the_configured_one() -> None:
    assert isinstance(running_limit(BatchLimits(8)), FixedLimit)
    assert isinstance(running_limit(latency_limits()), LatencyLimit)
    assert isinstance(running_limit(throughput_limits()), ThroughputLimit)


def test_latency_above_the_target_cuts_in_proportion() -> None:
    limit = LatencyLimit(latency_limits(most=32))

    seen = drive(limit, lambda batch: TARGET_S * 1.25, 16)

    assert seen[-1] == 25  # floor(32 / 1.25)


def test_one_cut_takes_at_most_half() -> None:
    limit = LatencyLimit(latency_limits(most=32))

    drive(limit, lambda batch: TARGET_S * 100, 16)

    assert limit.current == 16


def test_a_cut_is_judged_only_once_the_batch_has_shrunk_to_it() -> None:
    limit = LatencyLimit(latency_limits(most=32))
    drive(limit, lambda batch: TARGET_S * 2, 16)
    assert limit.current == 16

    for _ in range(200):
        limit.observe(StepSeen(0.0, 1.0, 32, 32, True), [TARGET_S * 2] * 32)

    assert limit.current == 16


def test_the_limit_rises_by_one_only_where_it_was_hit_with_work_waiting_and_latency_leaves_room() -> None:
    fast, close = TARGET_S * 0.5, TARGET_S * 0.95
    cases = [(fast, True, None, 1), (fast, False, None, 0), (close, True, None, 0), (fast, True, 4, 0)]
    for step_s, waited, running, rise in cases:
        limit = LatencyLimit(latency_limits(most=32))
        limit.current = 8

        drive(limit, lambda batch, step_s=step_s: step_s, 16, waited=waited, running=running)  # type: ignore[misc]

        assert limit.current == 8 + rise


def test_it_settles_where_the_latency_meets_the_target() -> None:
    limit = LatencyLimit(latency_limits(most=64))

    seen = drive(limit, lambda batch: 0.002 + 0.001 * batch, 4000)  # 18 sequences take 20 ms

    assert min(seen[1000:]) >= 14
    assert max(seen[1000:]) <= 19


@given(factors=st.lists(st.floats(0.1, 10.0), min_size=20, max_size=200), least=st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_it_never_leaves_its_bounds(factors: list[float], least: int) -> None:
    for limit in (LatencyLimit(latency_limits(16, least)), ThroughputLimit(throughput_limits(16, least))):
        steps = iter(factors * 40)
        seen = drive(limit, lambda batch, steps=steps: TARGET_S * next(steps), len(factors) * 40)  # type: ignore[misc]
        assert least <= min(seen)
        assert max(seen) <= 16


def test_new_bounds_hold_at_once() -> None:
    limit = LatencyLimit(latency_limits(most=32))

    limit.set_limits(latency_limits(most=8))
    assert limit.current == 8

    limit.set_limits(latency_limits(most=32, least=12))
    assert limit.current == 12


def test_a_limit_with_better_throughput_is_found_and_kept() -> None:
    limit = ThroughputLimit(throughput_limits(most=32))

    # Per-step time grows with the square: the best throughput is at sqrt(200) = 14 sequences.
    drive(limit, lambda batch: 0.010 + 0.00005 * batch * batch, 20_000)

    assert 10 <= limit.current <= 18


def test_where_no_limit_is_better_the_largest_stays_and_trials_become_rare() -> None:
    limit = ThroughputLimit(throughput_limits(most=32))

    seen = drive(limit, lambda batch: 0.010 + 0.0001 * batch, 60_000)

    assert limit.current == 32
    assert np.mean(np.array(seen[-30_000:]) == 32) > 0.95


def test_noise_is_no_gain() -> None:
    rng = np.random.default_rng(5)
    limit = ThroughputLimit(throughput_limits(most=32))

    # Throughput is the same at every limit, but for noise of 10 % a step.
    seen = drive(limit, lambda batch: batch * 0.001 * float(rng.uniform(0.9, 1.1)), 30_000)

    assert np.mean(np.array(seen) == 32) > 0.7


def test_without_work_waiting_nothing_is_tried() -> None:
    limit = ThroughputLimit(throughput_limits(most=32))

    assert set(drive(limit, lambda batch: 0.01, 5_000, waited=False)) == {32}
