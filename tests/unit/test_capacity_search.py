"""The search for capacity, against made-up servers whose capacity is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.experiment.capacity_search import CapacitySearch, Outcome, SearchPlan, crossing, isotonic

BLOCKS = 10


def server(capacity: float, seed: int = 0, *, steepness: float = 12.0) -> Callable[[float], Outcome]:
    """A server that meets the SLO for 99 % of the requests at `capacity`, more below it and ever fewer above."""
    rng = np.random.default_rng(seed)

    def probe(rate: float) -> Outcome:
        share = 1.0 / (1.0 + math.exp(steepness * math.log(rate / capacity)) / 99.0)
        due = np.full(BLOCKS, 60)
        return Outcome(rate, tuple(due.tolist()), tuple(rng.binomial(due, share).tolist()))

    return probe


def searched(probe: Callable[[float], Outcome], plan: SearchPlan) -> CapacitySearch:
    search = CapacitySearch(plan)
    while (rate := search.next_rate()) is not None:
        search.add(probe(rate))
    return search


def outcome(rate: float, attainment: float, due: int = 100) -> Outcome:
    return Outcome(rate, (due,), (round(due * attainment),))


@pytest.mark.parametrize("capacity", [0.3, 2.0, 37.0, 900.0])
def test_it_finds_the_capacity_of_a_noisy_server_from_far_off(capacity: float) -> None:
    found = []
    for seed in range(6):
        search = searched(server(capacity, seed), SearchPlan(quantile=0.99, start_rate=8.0))
        result = search.capacity()
        assert result.rate is not None
        assert result.low <= result.rate
        found.append((result.rate, result.low <= capacity <= (result.high or math.inf)))

    # One percent of misses is hard to tell from two with hundreds of requests, so single searches scatter.
    assert np.median([rate for rate, _ in found]) == pytest.approx(capacity, rel=0.12)
    assert sum(covered for _, covered in found) >= 5


def test_the_number_of_probes_stays_small() -> None:
    search = searched(server(37.0), SearchPlan(quantile=0.99, start_rate=8.0))

    assert 6 <= len(search.outcomes) <= 24


@given(capacity=st.floats(0.2, 5000.0), start=st.floats(0.1, 5000.0), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_every_search_ends_inside_its_limits(capacity: float, start: float, seed: int) -> None:
    plan = SearchPlan(quantile=0.95, start_rate=start, lowest_rate=0.5, highest_rate=1000.0, max_probes=30)

    search = searched(server(capacity, seed), plan)

    assert 1 <= len(search.outcomes) <= 30
    assert all(0.5 * 0.999 <= one.rate <= 1000.0 * 1.001 for one in search.outcomes)


def test_a_sharp_edge_is_bracketed_to_the_resolution() -> None:
    plan = SearchPlan(quantile=0.99, start_rate=1.0, resolution=1.05, repeats=0)

    search = searched(lambda rate: outcome(rate, 1.0 if rate <= 42.0 else 0.2), plan)

    low, high = search.bracket
    assert low is not None
    assert high is not None
    assert low <= 42.0 < high <= low * 1.05


def test_both_ends_of_the_last_bracket_are_repeated() -> None:
    plan = SearchPlan(quantile=0.99, start_rate=32.0, resolution=2.0, repeats=2)

    search = searched(lambda rate: outcome(rate, 1.0 if rate <= 40.0 else 0.2), plan)

    assert [one.rate for one in search.outcomes] == [32.0, 64.0, 32.0, 32.0, 64.0, 64.0]


def test_a_server_that_never_breaks_the_promise_has_no_upper_end() -> None:
    plan = SearchPlan(quantile=0.99, start_rate=100.0, highest_rate=400.0, repeats=0)

    result = searched(lambda rate: outcome(rate, 1.0), plan).capacity()

    assert (result.rate, result.high) == (400.0, None)


def test_a_server_that_never_keeps_it_has_no_capacity() -> None:
    plan = SearchPlan(quantile=0.99, start_rate=4.0, lowest_rate=1.0)

    search = searched(lambda rate: outcome(rate, 0.5), plan)

    assert [one.rate for one in search.outcomes] == [4.0, 2.0, 1.0]
    assert search.capacity().rate is None


def test_what_the_generator_cannot_offer_is_not_tried_again() -> None:
    search = CapacitySearch(SearchPlan(quantile=0.99, start_rate=100.0, resolution=1.2, repeats=0))
    tried = []
    while (rate := search.next_rate()) is not None:
        tried.append(rate)
        if rate > 150.0:
            search.cannot_offer(rate)
        else:
            search.add(outcome(rate, 1.0))

    assert tried[:2] == [100.0, 200.0]
    assert max(tried[2:]) < 200.0
    assert len(tried) < 8
    assert search.capacity().high is None


def test_noise_that_goes_uphill_is_pooled() -> None:
    rates, levels = isotonic([outcome(1, 1.0), outcome(2, 0.90), outcome(3, 0.96), outcome(4, 0.2)])

    assert rates.tolist() == [1, 2, 3, 4]
    assert levels.tolist() == pytest.approx([1.0, 0.93, 0.93, 0.2])


@given(st.lists(st.tuples(st.sampled_from([1.0, 2.0, 4.0, 8.0]), st.integers(0, 50)), min_size=1, max_size=12))
def test_the_fit_never_rises_and_keeps_the_total(probes: list[tuple[float, int]]) -> None:
    outcomes = [Outcome(rate, (50,), (met,)) for rate, met in probes]

    rates, levels = isotonic(outcomes)

    assert np.all(np.diff(levels) <= 1e-12)
    due = [sum(50 for one in outcomes if one.rate == rate) for rate in rates]
    assert float(np.dot(levels, due)) == pytest.approx(sum(met for _, met in probes))


def test_the_crossing_lies_between_the_rates_on_a_logarithmic_scale() -> None:
    rate, unbounded = crossing(np.array([1.0, 4.0]), np.array([1.0, 0.0]), 0.5)

    assert rate == pytest.approx(2.0)
    assert not unbounded


def test_before_the_first_probe_there_is_no_capacity() -> None:
    with pytest.raises(ValueError, match="no probe"):
        CapacitySearch(SearchPlan(quantile=0.9, start_rate=1.0)).capacity()
