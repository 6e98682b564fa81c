"""The same records as others report them: worked examples and the identities between the views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from muai_lab.analysis import load_run
from muai_lab.analysis.frames import Run
from muai_lab.analysis.views import as_aiperf, as_guidellm, as_vllm
from tests.unit.synthetic_run import record, simulated, write_run


@pytest.fixture(scope="module", params=[1, 4], ids=["a token per chunk", "four tokens per chunk"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(simulated(tmp_path_factory.mktemp("views"), duration=6.0, failures=0.05, burst=request.param))


def test_vllm_tpot_is_aiperf_itl_is_unweighted_guidellm_itl(run: Run) -> None:
    tpot = as_vllm(run)["tpot_mean_s"]

    assert tpot == pytest.approx(as_aiperf(run)["itl_mean_s"])
    assert tpot == pytest.approx(as_guidellm(run)["itl_unweighted_mean_s"])


def test_vllm_itl_is_aiperf_icl(run: Run) -> None:
    assert as_vllm(run)["itl_mean_s"] == pytest.approx(as_aiperf(run)["icl_mean_s"])


def test_mean_guidellm_tpot_is_all_time_by_all_tokens(run: Run) -> None:
    ok = run.measured.query("status == 'ok'")

    assert as_guidellm(run)["tpot_mean_s"] == pytest.approx(ok["e2e_s"].sum() / ok["tokens"].sum())


def test_two_requests_by_hand(tmp_path: Path) -> None:
    rows = [
        record(0, due=1.0, sent=1.0, chunks=[2.0, 2.1, 2.4], chunk_tokens=[1, 1, 3]),  # 5 tokens, 0.4 s of decode
        record(1, due=3.0, sent=3.0, chunks=[3.5, 4.5]),  # 2 tokens, 1 s of decode
    ]

    run = load_run(write_run(tmp_path, rows))

    assert as_vllm(run) == pytest.approx({"ttft_mean_s": 0.75, "tpot_mean_s": 0.55, "itl_mean_s": 1.4 / 3})
    assert as_guidellm(run)["itl_mean_s"] == pytest.approx((0.4 + 1.0) / (4 + 1))
    assert as_guidellm(run)["tpot_mean_s"] == pytest.approx((1.4 + 1.5) / 7)
    assert as_aiperf(run)["requests_per_s"] == pytest.approx(2 / 3.5)
    assert as_aiperf(run)["output_tokens_per_s"] == pytest.approx(7 / 3.5)


def test_nothing_measured_is_nan_everywhere(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, [record(0, status="error")]))

    for view in (as_vllm, as_aiperf, as_guidellm):
        assert all(np.isnan(value) for value in view(run).values())
