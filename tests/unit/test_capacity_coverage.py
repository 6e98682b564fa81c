"""Capacity studies at the defaults on queues of known capacity: a small version of `benchmarks.coverage capacity`."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.capacity_worlds import single_server, slots
from benchmarks.coverage_capacity import shares_of, studies_of


def test_intervals_hold_the_capacity_of_a_queue_whose_starts_differ() -> None:
    world = single_server(2.0)

    shares = shares_of(world, 0.95, studies_of(world, 0.95, 0.03, repeats=16, seed=5))

    assert shares.printed >= 0.9
    assert shares.coverage >= 0.75
    assert abs(shares.bias) < 0.03
    assert shares.width < 0.1


@pytest.mark.parametrize("variation", [1.0, 2.0])
def test_the_known_capacity_is_that_of_a_long_run(variation: float) -> None:
    world = single_server(1.0, variation)
    ones = np.ones(40)

    windows = world.probe(np.random.default_rng(1), ones * world.capacity(0.9), ones, ones * 200.0, ones * 1000.0)

    met = np.concatenate([window.latency_s[window.measured] <= 1.0 for window in windows])
    assert float(met.mean()) == pytest.approx(0.9, abs=0.01)


def test_the_share_within_a_bound_falls_with_the_rate_and_saturates() -> None:
    world = slots(0.5)

    shares = [world.attained(world.top * load) for load in (0.3, 0.8, 0.9, 0.99)]

    assert shares[0] == pytest.approx(1.0, abs=1e-3)
    assert shares == sorted(shares, reverse=True)
    assert world.attained(world.capacity(0.95)) == pytest.approx(0.95, abs=1e-6)
