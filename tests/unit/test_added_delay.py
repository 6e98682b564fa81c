"""The bound on the generator's own part, against simulations in which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from muai_lab.load.added_delay import QUANTILES, added_delays, most_added, share_of_cycles
from muai_lab.request_record import RequestRecord

SHARES = tuple(QUANTILES.items())
times = st.lists(st.floats(0.001, 10.0), min_size=1, max_size=30)
delays = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20)


def quantile(values: np.ndarray, q: float) -> float:
    """Without interpolation: the theorem is about the steps of a distribution function."""
    return float(np.quantile(values, q, method="inverted_cdf"))


@settings(max_examples=60, deadline=None)
@example([0.001] * 10 + [1.0] + [2.0] * 4 + [5.0] * 2 + [10.0] * 3, [0.0] * 11 + [0.5] * 4 + [1.0] * 5)
@given(times, delays)
def test_no_independent_delay_moves_a_quantile_by_more_than_the_bound(server: list[float], own: list[float]) -> None:
    true = np.array(server)
    recorded = np.add.outer(true, np.array(own)).ravel()  # every time with every delay: independent, exactly

    found = most_added(recorded, np.array(own))

    for name, q in SHARES:
        assert quantile(recorded, q) - quantile(true, q) <= found.figures_s[name] + 1e-6
    assert found.figures_s["mean"] == pytest.approx(np.mean(own))


def test_a_constant_server_is_bounded_tightly() -> None:
    random = np.random.default_rng(1)
    own = random.exponential(0.002, 2000)
    recorded = 0.005 + random.exponential(0.002, 5000)

    found = most_added(recorded, own)

    for name, q in SHARES:
        error = np.quantile(recorded, q) - 0.005
        assert error * 0.95 <= found.figures_s[name] <= 2.1 * error
    assert found.marked == ("mean", "p50", "p90", "p95", "p99")


def test_no_delay_adds_nothing_and_marks_nothing() -> None:
    found = most_added(np.linspace(0.01, 0.02, 100), np.zeros(50))

    assert set(found.figures_s.values()) == {0.0}
    assert found.marked == ()


def answer(ttft_ms: float, gap_ms: float, tokens: int, lag_ms: float) -> RequestRecord:
    record = RequestRecord(0, max_tokens=tokens, intended_ns=0)
    record.sent_ns = round(lag_ms * 1e6)
    for token in range(tokens):
        record.chunk_t_ns.append(record.sent_ns + round((ttft_ms + gap_ms * token) * 1e6))
    record.end("ok", record.chunk_t_ns[-1])
    return record


def test_an_open_loop_counts_the_lag_where_times_start_from_the_intended_one() -> None:
    found = added_delays([answer(20.0, 5.0, 11, 8.0)] * 50, np.zeros(100), open_loop=True)

    assert found["ttft_from_intended_s"].figures_s["p50"] == pytest.approx(0.008)
    assert found["e2e_from_intended_s"].figures_s["p50"] == pytest.approx(0.008)
    assert found["ttft_s"].figures_s["p50"] == 0.0


def test_a_time_per_token_shares_its_two_delays_among_the_tokens() -> None:
    lateness = np.array([0.0] * 80 + [0.02] * 20)
    read = [answer(20.0, 5.0 + late_ms / 10, 11, 0.0) for late_ms in [-20.0] * 16 + [0.0] * 68 + [20.0] * 16]
    found = added_delays(read, lateness, open_loop=False)

    assert set(found) == {"ttft_s", "e2e_s", "tpot_s", "itl_s"}
    assert found["tpot_s"].figures_s["p99"] == pytest.approx(0.002)
    assert found["tpot_s"].marked == ("mean", "p90", "p95", "p99")


def test_a_cycle_counts_its_sending_and_its_two_delays() -> None:
    record = RequestRecord(0, max_tokens=1, released_ns=0)
    record.sent_ns = 2_000_000
    record.end("ok", 100_000_000)

    assert share_of_cycles([record], np.full(10, 0.003)) == pytest.approx(0.08)
    assert share_of_cycles([record], np.zeros(0)) is None
    assert share_of_cycles([], np.zeros(3)) is None


def test_a_long_stall_costs_a_closed_loop_its_length_only() -> None:
    record = RequestRecord(0, max_tokens=1, released_ns=0)
    record.sent_ns = 0
    record.end("ok", 10_000_000)
    beats = np.zeros(2000)  # 10 s
    beats[:200] = np.arange(1.0, 0.0, -0.005)  # of which the loop stood still for 1 s

    share = share_of_cycles([record], beats)

    assert share == pytest.approx(0.1, rel=0.05)
