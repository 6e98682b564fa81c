"""The rule by which a request meets an SLO: for one request as for many."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.slo import Slo, keeps, longest_s, meets, pace_s, slo_of

latencies = st.one_of(st.floats(0.0, 10.0), st.just(math.nan))
tokens = st.one_of(st.integers(0, 4).map(float), st.just(math.nan))


@pytest.mark.parametrize(
    ("latency_s", "tokens", "kept"),
    [(0.1, 8, True), (0.2, 8, False), (math.nan, 8, False), (math.nan, math.nan, False)],
)
@pytest.mark.parametrize("metric", ["ttft", "tpot", "e2e"])
def test_a_bound_is_kept_by_a_latency_that_was_seen_and_is_at_most_as_large(
    metric: str, latency_s: float, tokens: float, kept: bool
) -> None:
    assert keeps(metric, latency_s, tokens, 0.1) is kept


def test_a_bound_on_tpot_does_not_apply_to_one_token() -> None:
    assert keeps("tpot", math.nan, 1, 0.1)
    assert not keeps("ttft", math.nan, 1, 0.1)


@given(st.sampled_from(["ttft", "tpot", "e2e"]), st.lists(st.tuples(latencies, tokens), min_size=1, max_size=5))
def test_arrays_are_judged_as_their_elements(metric: str, requests: list[tuple[float, float]]) -> None:
    latency_s, count = (np.array(column, dtype=np.float64) for column in zip(*requests, strict=True))

    assert keeps(metric, latency_s, count, 1.0).tolist() == [keeps(metric, *one, 1.0) for one in requests]


def test_a_request_meets_an_slo_that_bounds_nothing_and_one_whose_every_bound_it_keeps() -> None:
    seen = {"ttft": 0.1, "tpot": 0.02, "e2e": math.nan}

    assert meets(Slo().bounds_s, seen, 8)
    assert meets(Slo(ttft_ms=100, tpot_ms=20).bounds_s, seen, 8)
    assert not meets(Slo(ttft_ms=100, tpot_ms=19).bounds_s, seen, 8)
    assert not meets(Slo(ttft_ms=100, e2e_ms=10_000).bounds_s, seen, 8)


def test_the_pace_is_that_of_the_tokens_after_the_first() -> None:
    assert pace_s(1.0, 11) == pytest.approx(0.1)
    assert math.isnan(pace_s(0.0, 1))


@given(
    st.builds(Slo, ttft_ms=st.floats(1, 1e4), tpot_ms=st.floats(1, 1e3), e2e_ms=st.none() | st.floats(1, 1e5)),
    st.integers(2, 500),
    st.floats(1.001, 10.0),
)
def test_a_request_that_took_longer_than_the_longest_meets_no_slo(slo: Slo, count: int, factor: float) -> None:
    limit_s = longest_s(slo, count)
    assert limit_s is not None
    e2e_s, ttft_s = limit_s * factor, slo.bounds_s["ttft"]

    assert not meets(slo.bounds_s, {"ttft": ttft_s, "tpot": pace_s(e2e_s - ttft_s, count), "e2e": e2e_s}, count)


def test_a_configuration_without_bounds_has_no_slo() -> None:
    assert slo_of({"slo": {"ttft_ms": None, "quantile": 0.9}}) is None
    assert slo_of({}) is None
    assert slo_of({"slo": {"e2e_ms": 100, "quantile": 0.9}}) == Slo(e2e_ms=100.0, quantile=0.9)
