"""The metrics of a run by the definitions of other benchmarks, for a comparison name by name.

Latencies are seconds, over the successful requests that were due in the measurement window. The tools are vLLM
(`bench serve`), NVIDIA AIPerf and GuideLLM. A docstring states where the records lack what a definition needs.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from muai_lab.analysis.frames import Run
from muai_lab.analysis.metrics import METRIC_BY_NAME
from muai_lab.analysis.samples import samples_of
from muai_lab.arrays import Floats


def as_vllm(run: Run) -> dict[str, float]:
    """Return the metrics of vLLM `bench serve`: TPOT as ours, mean over requests; ITL pools the gaps of all requests.

    vLLM takes TTFT at the first chunk, even if that is empty. Records hold no empty chunks, so TTFT is ours.
    """
    ok = _successful(run)
    return {
        "ttft_mean_s": _mean(ok["ttft_s"]),
        "tpot_mean_s": _mean(ok["tpot_s"]),
        "itl_mean_s": _mean(samples_of(run, METRIC_BY_NAME["itl"]).values),
    }


def as_aiperf(run: Run) -> dict[str, float]:
    """Return the metrics of AIPerf: its ITL is our TPOT, its inter-chunk latency (ICL) pools the gaps.

    Its rates are over the time from the first send to the last answer.
    """
    ok = _successful(run)
    span_s = float(ok["last_token_s"].max() - ok["sent_s"].min())
    tokens = float(ok["tokens"].sum())
    return {
        "itl_mean_s": _mean(ok["tpot_s"]),
        "icl_mean_s": _mean(samples_of(run, METRIC_BY_NAME["itl"]).values),
        "requests_per_s": len(ok) / span_s if span_s > 0 else float("nan"),
        "output_tokens_per_s": tokens / span_s if span_s > 0 else float("nan"),
    }


def as_guidellm(run: Run) -> dict[str, float]:
    """Return the metrics of GuideLLM for answers of n tokens.

    TPOT = (last token - start) / n, weighted by n. ITL = (last - first) / (n - 1), weighted by n - 1.
    """
    ok = _successful(run)
    tokens = ok["tokens"].to_numpy(dtype="float64", na_value=np.nan)
    per_token = ok["e2e_s"].to_numpy() / np.where(tokens > 0, tokens, np.nan)
    between = ok["tpot_s"].to_numpy()
    return {
        "tpot_mean_s": _weighted_mean(per_token, tokens),
        "itl_mean_s": _weighted_mean(between, tokens - 1.0),
        "itl_unweighted_mean_s": _mean(between),
    }


def _successful(run: Run) -> pd.DataFrame:
    measured = run.measured
    return measured[measured["status"] == "ok"]


def _mean(values: pd.Series | Floats) -> float:
    return _weighted_mean(np.asarray(values, dtype=np.float64), np.ones(len(values)))


def _weighted_mean(values: Floats, weights: Floats) -> float:
    present = np.isfinite(values) & np.isfinite(weights)
    if not present.any() or weights[present].sum() <= 0:
        return float("nan")
    return float(np.average(values[present], weights=weights[present]))
