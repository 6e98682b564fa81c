"""The requests of one run told apart: by part of a mix, else by turn of a conversation.

A mean over very different requests describes none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from muai_lab.analysis.statistics import min_samples

_MOST_ROWS = 20


def breakdown(measured: pd.DataFrame) -> dict[str, Any] | None:
    """Figures of each group of the measured requests; None where they are all of one kind.

    `by` is `part` or `turn`, and `rows` has for each group, over its successful requests: median prompt_tokens, the
    share of prompt tokens that came from the server's cache, medians of TTFT, TPOT and E2E in seconds. TTFT and E2E
    count from the intended time where there is one. Turns are counted from 1. At most 20 groups, the others left out.
    """
    by = next((column for column in ("part", "turn") if measured[column].nunique() > 1), None)
    if by is None:
        return None
    groups = list(measured.groupby(by, sort=True))[:_MOST_ROWS]
    return {"by": by, "rows": [dict(_figures(_label(by, value), requests)) for value, requests in groups]}


def cached_share(ok: pd.DataFrame) -> float | None:
    """Share of the prompt tokens that came from the server's prefix cache; None where no request tells.

    ok: successful requests.
    """
    known = ok[ok["cached_prompt_tokens"].notna() & ok["prompt_tokens"].notna()]
    prompts = int(known["prompt_tokens"].sum())
    return int(known["cached_prompt_tokens"].sum()) / prompts if prompts else None


def _label(by: str, value: Any) -> str:
    return str(int(value) + 1) if by == "turn" else str(value)


def _figures(label: str, requests: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    ok = requests[requests["status"] == "ok"]
    yield from {"name": label, "due": len(requests), "ok": len(ok)}.items()
    yield "prompt_tokens_p50", _median(ok["prompt_tokens"])
    yield "cached_share", cached_share(ok)
    for name in ("ttft", "tpot", "e2e"):
        intended = ok.get(f"{name}_from_intended_s")
        values = ok[f"{name}_s"] if intended is None or intended.isna().all() else intended
        yield f"{name}_p50_s", _median(values)


def _median(values: pd.Series) -> float | None:
    present = values.to_numpy(dtype="float64", na_value=np.nan)
    present = present[np.isfinite(present)]
    return float(np.median(present)) if present.size >= min_samples(0.5) else None
