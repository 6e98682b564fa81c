"""The search for capacity, against made-up servers whose capacity is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.experiment.capacity_curve import ProbeOutcome, crossing, edge_of, isotonic
from muai_lab.experiment.capacity_search import LEAST_EDGES, CapacitySearch, NextProbe, SearchPlan

Server = Callable[[NextProbe], ProbeOutcome]
BLOCKS = 5


def server(
    capacity: float, seed: int = 0, *, quantile: float = 0.99, slope: float = 20.0, start: float = 0.0
) -> Server:
    """A server whose misses have the odds of the quantile at `capacity`; `start` is the scatter between its starts."""
    rng = np.random.default_rng(seed)
    odds = (1.0 - quantile) / quantile

    def probe(ask: NextProbe) -> ProbeOutcome:
        own = capacity * math.exp(rng.normal(0.0, start))
        missed = odds * (ask.rate / own) ** slope
        due = np.full(BLOCKS, max(round(ask.rate * ask.seconds / BLOCKS), 1))
        met = rng.binomial(due, 1.0 / (1.0 + missed))
        return ProbeOutcome(ask.rate, tuple(due.tolist()), tuple(met.tolist()), ask.seconds, 0.5, ask.edge)

    return probe


def searched(probe: Server, plan: SearchPlan) -> CapacitySearch:
    search = CapacitySearch(plan)
    while (ask := search.next_probe()) is not None:
        search.add(probe(ask))
    return search


def outcome(rate: float, attainment: float, due: int = 100, *, edge: bool = False) -> ProbeOutcome:
    return ProbeOutcome(rate, (due,), (round(due * attainment),), 30.0, 0.5, edge)


def step(at: float) -> Server:
    """A server that keeps the SLO up to a rate and then breaks it."""
    return lambda ask: outcome(ask.rate, 1.0 if ask.rate <= at else 0.2, edge=ask.edge)


@pytest.mark.parametrize(("capacity", "slope"), [(0.9, 20.0), (37.0, 6.0), (37.0, 60.0), (900.0, 20.0)])
def test_it_finds_the_capacity_of_a_noisy_server_from_far_off(capacity: float, slope: float) -> None:
    errors, held = [], []
    for seed in range(4):
        probe = server(capacity, seed, slope=slope, start=0.03)
        result = searched(probe, SearchPlan(quantile=0.99, start_rate=8.0)).capacity()
        assert result.rate is not None
        assert result.low is not None
        assert result.high is not None
        errors.append(math.log(result.rate / capacity))
        held.append(result.low <= capacity <= result.high)

    assert abs(float(np.mean(errors))) < 0.03
    assert sum(held) >= 3


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    # Given 15 studies of servers whose starts differ by 3 %
    found = [
        searched(server(37.0, seed, start=0.03), SearchPlan(quantile=0.99, start_rate=30.0)).capacity()
        for seed in range(15)
    ]

    held = [one.low <= 37.0 <= one.high for one in found if one.low is not None and one.high is not None]
    assert len(held) == 15
    assert sum(held) >= 12
    assert abs(float(np.mean([math.log((one.rate or 1.0) / 37.0) for one in found]))) < 0.02


def test_a_first_rate_that_just_holds_does_not_take_the_lower_end_to_zero() -> None:
    result = searched(server(37.0, 3), SearchPlan(quantile=0.99, start_rate=36.9)).capacity()

    assert result.low is not None
    assert result.low > 30.0


def test_long_probes_lie_on_both_sides_of_the_edge_and_are_as_long_as_the_memory_demands() -> None:
    search = searched(server(37.0, quantile=0.95), SearchPlan(quantile=0.95, start_rate=8.0))

    rates = [one.rate for one in search.edges]
    assert len(rates) >= 10
    assert min(rates) < 37.0 < max(rates)
    ask = CapacitySearch(replace(search.plan, repeats=10))
    for one in search.searched:
        ask.add(replace(one, memory_s=4.0))
    asked = ask.next_probe()
    assert asked is not None
    assert asked.edge
    assert asked.seconds == pytest.approx(80.0)
    assert asked.lead_s == pytest.approx(16.0)


def test_a_value_without_interval_if_there_are_too_few_long_probes() -> None:
    plan = SearchPlan(quantile=0.99, start_rate=30.0, repeats=LEAST_EDGES - 1)

    result = searched(server(37.0), plan).capacity()

    assert result.rate == pytest.approx(37.0, rel=0.1)
    assert (result.low, result.high) == (None, None)


def test_a_value_without_interval_if_long_windows_are_too_short_for_the_memory() -> None:
    search = CapacitySearch(SearchPlan(quantile=0.99, start_rate=30.0, edge_longest_s=60.0))
    probe = server(37.0)
    while (ask := search.next_probe()) is not None:
        search.add(replace(probe(ask), memory_s=20.0))

    assert not search.long_enough()
    assert search.capacity().rate == pytest.approx(37.0, rel=0.1)
    assert search.capacity().low is None


@given(capacity=st.floats(0.2, 5000.0), start=st.floats(0.1, 5000.0), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_every_search_ends_inside_its_limits(capacity: float, start: float, seed: int) -> None:
    plan = SearchPlan(quantile=0.95, start_rate=start, lowest_rate=0.5, highest_rate=1000.0, max_probes=30)

    search = searched(server(capacity, seed, quantile=0.95), plan)

    assert 1 <= len(search.outcomes) <= 30
    assert all(0.5 * 0.999 <= one.rate <= 1000.0 * 1.001 for one in search.outcomes)


def test_a_sharp_edge_is_bracketed_to_the_resolution() -> None:
    plan = SearchPlan(quantile=0.99, start_rate=1.0, resolution=1.05, repeats=0)

    search = searched(step(42.0), plan)

    low, high = search.bracket
    assert low is not None
    assert high is not None
    assert low <= 42.0 < high <= low * 1.05


def test_a_server_that_never_breaks_the_slo_has_no_upper_end() -> None:
    plan = SearchPlan(quantile=0.99, start_rate=100.0, highest_rate=400.0, repeats=0)

    result = searched(step(math.inf), plan).capacity()

    assert (result.rate, result.low, result.high, result.open) == (400.0, None, None, True)


def test_a_server_that_never_keeps_it_has_no_capacity() -> None:
    plan = SearchPlan(quantile=0.99, start_rate=4.0, lowest_rate=1.0)

    search = searched(step(0.0), plan)

    assert [one.rate for one in search.outcomes] == [4.0, 2.0, 1.0]
    assert search.capacity().rate is None


def test_what_the_generator_cannot_offer_is_not_tried_again() -> None:
    search = CapacitySearch(SearchPlan(quantile=0.99, start_rate=100.0, resolution=1.2, repeats=0))
    tried = []
    while (ask := search.next_probe()) is not None:
        tried.append(ask.rate)
        if ask.rate > 150.0:
            search.cannot_offer(ask.rate)
        else:
            search.add(outcome(ask.rate, 1.0, edge=ask.edge))

    assert tried[:2] == [100.0, 200.0]
    assert max(tried[2:]) < 200.0
    assert len(tried) < 8
    assert search.capacity().open


def test_a_first_rate_that_cannot_be_offered_shrinks_by_the_factor_of_growth() -> None:
    search = CapacitySearch(SearchPlan(quantile=0.99, start_rate=100.0, lowest_rate=20.0, growth=2.0, repeats=0))
    tried = []
    while (ask := search.next_probe()) is not None:
        tried.append(ask.rate)
        search.cannot_offer(ask.rate)

    assert tried == [100.0, 50.0, 25.0]


def test_long_probes_that_break_the_slo_at_the_highest_rate_go_on_below_it() -> None:
    # Given a server that keeps the SLO for some seconds at a rate that it cannot keep for long
    def probe(ask: NextProbe) -> ProbeOutcome:
        return server(90.0, len(search.outcomes))(ask) if ask.edge else outcome(ask.rate, 1.0)

    search = CapacitySearch(SearchPlan(quantile=0.99, start_rate=50.0, highest_rate=100.0))
    while (ask := search.next_probe()) is not None:
        search.add(probe(ask))

    result = search.capacity()
    assert result.rate == pytest.approx(90.0, rel=0.05)
    assert result.high is not None


def test_misses_that_come_in_clusters_widen_the_interval() -> None:
    missed = {9.5: 3, 10.0: 5, 10.5: 8}
    alone = [ProbeOutcome(rate, (200,) * 5, (200 - misses,) * 5, edge=True) for rate, misses in missed.items()] * 2
    together = [replace(one, met=(200, 200, 200 - 5 * missed[one.rate], 200, 200)) for one in alone]

    assert edge_of(alone, 0.975).rate == pytest.approx(10.0, rel=0.01)
    assert edge_of(together, 0.975).cluster > 10.0 * edge_of(alone, 0.975).cluster
    assert edge_of(together, 0.975).error > 2.0 * edge_of(alone, 0.975).error


@given(st.lists(st.tuples(st.floats(5.0, 20.0), st.integers(0, 50)), min_size=3, max_size=12))
@settings(max_examples=30, deadline=None)
def test_the_fit_is_finite_whatever_the_probes_say(probes: list[tuple[float, int]]) -> None:
    edge = edge_of([ProbeOutcome(rate, (50,), (met,), edge=True) for rate, met in probes], 0.99)

    low, high = edge.interval()
    assert 0.0 <= low <= edge.rate <= high
    assert 1.0 < edge.rate < 100.0


def test_noise_that_goes_uphill_is_pooled() -> None:
    rates, levels = isotonic([outcome(1, 1.0), outcome(2, 0.90), outcome(3, 0.96), outcome(4, 0.2)])

    assert rates.tolist() == [1, 2, 3, 4]
    assert levels.tolist() == pytest.approx([1.0, 0.93, 0.93, 0.2])


@given(st.lists(st.tuples(st.sampled_from([1.0, 2.0, 4.0, 8.0]), st.integers(0, 50)), min_size=1, max_size=12))
def test_the_fit_never_rises_and_keeps_the_total(probes: list[tuple[float, int]]) -> None:
    outcomes = [ProbeOutcome(rate, (50,), (met,)) for rate, met in probes]

    rates, levels = isotonic(outcomes)

    assert np.all(np.diff(levels) <= 1e-12)
    due = [sum(50 for one in outcomes if one.rate == rate) for rate in rates]
    assert float(np.dot(levels, due)) == pytest.approx(sum(met for _, met in probes))


def test_the_crossing_lies_between_the_rates_on_a_logarithmic_scale() -> None:
    assert crossing(np.array([1.0, 4.0]), np.array([1.0, 0.0]), 0.5) == pytest.approx(2.0)


def test_before_the_first_probe_there_is_no_capacity() -> None:
    with pytest.raises(ValueError, match="no probe"):
        CapacitySearch(SearchPlan(quantile=0.9, start_rate=1.0)).capacity()


def test_without_misses_there_is_no_interval() -> None:
    search = CapacitySearch(SearchPlan(quantile=0.99, start_rate=30.0, repeats=6))
    search.add(outcome(30.0, 1.0))
    search.add(outcome(32.0, 0.9))
    for _ in range(12):
        search.add(outcome(31.0, 1.0, edge=True))

    assert search.capacity().low is None
