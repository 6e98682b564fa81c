"""The requests of one run in groups: by part of a mix, else by turn of a conversation.

A mean over very different requests describes none of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from muai_lab.analysis.metrics import judged_columns
from muai_lab.analysis.statistics import min_samples
from muai_lab.analysis.summary_schema import Breakdown, BreakdownRow

_MOST_ROWS = 20


def breakdown(measured: pd.DataFrame) -> Breakdown | None:
    """Return the figures of each group of the measured requests; None if they are all of one kind.

    Medians are over the successful requests of a group. TTFT and E2E count from the intended time in an open loop.
    Turns are counted from 1. At most 20 groups are listed.
    """
    by = next((column for column in ("part", "turn") if measured[column].nunique() > 1), None)
    if by is None:
        return None
    groups = list(measured.groupby(by, sort=True))[:_MOST_ROWS]
    return Breakdown(by=by, rows=tuple(_row(_label(by, value), requests) for value, requests in groups))


def cached_share(ok: pd.DataFrame) -> float | None:
    """Return the share of the prompt tokens that came from the server's prefix cache; None if no request states it.

    ok: successful requests.
    """
    known = ok[ok["cached_prompt_tokens"].notna() & ok["prompt_tokens"].notna()]
    prompts = int(known["prompt_tokens"].sum())
    return int(known["cached_prompt_tokens"].sum()) / prompts if prompts else None


def _label(by: str, value: Any) -> str:
    return str(int(value) + 1) if by == "turn" else str(value)


def _row(label: str, requests: pd.DataFrame) -> BreakdownRow:
    ok = requests[requests["status"] == "ok"]
    return BreakdownRow(
        name=label,
        due=len(requests),
        ok=len(ok),
        prompt_tokens_p50=_median(ok["prompt_tokens"]),
        cached_share=cached_share(ok),
        ttft_p50_s=_median_latency(ok, "ttft"),
        tpot_p50_s=_median_latency(ok, "tpot"),
        e2e_p50_s=_median_latency(ok, "e2e"),
    )


def _median_latency(ok: pd.DataFrame, metric: str) -> float | None:
    columns = judged_columns(metric)
    return _median(ok[next((column for column in columns if ok[column].notna().any()), columns[-1])])


def _median(values: pd.Series) -> float | None:
    present = values.to_numpy(dtype="float64", na_value=np.nan)
    present = present[np.isfinite(present)]
    return float(np.median(present)) if present.size >= min_samples(0.5) else None
