"""The service-level objective: which requests met it.

Attainment = requests that meet every bound ÷ all requests due in the window. An error, a timeout, a rejection, a
cancellation is a miss. A bound on a time that the client could not see is not met: the request is not judgeable.
Goodput = requests that meet every bound ÷ window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds per request in milliseconds (None: not bounded), and the share of requests that must meet them."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    quantile: float = 0.99

    @property
    def bounds_ms(self) -> dict[str, float]:
        """The bounds that are set, by metric name."""
        named = {"ttft": self.ttft_ms, "tpot": self.tpot_ms, "e2e": self.e2e_ms}
        return {name: bound for name, bound in named.items() if bound is not None}


def slo_of(config: Mapping[str, Any]) -> Slo | None:
    """The objective in the `slo` section of a run's configuration; None when no bound is set."""
    section = config.get("slo")
    if not isinstance(section, Mapping):
        return None
    known = {
        name: section[name] for name in ("ttft_ms", "tpot_ms", "e2e_ms", "quantile") if section.get(name) is not None
    }
    slo = Slo(**{name: float(value) for name, value in known.items()})
    return slo if slo.bounds_ms else None


def judged_column(requests: pd.DataFrame, metric: str) -> str:
    """The column that an SLO on `metric` judges: from the intended time where the run has one (open loop)."""
    if metric in ("ttft", "e2e") and requests["intended_s"].notna().any():
        return f"{metric}_from_intended_s"
    return f"{metric}_s"


NOT_JUDGEABLE = "not_judgeable"


def misses(requests: pd.DataFrame, slo: Slo) -> dict[str, NDArray[np.bool_]]:
    """The requests that did not meet the SLO, by reason.

    `failed` (status not ok), each bounded metric by its name (later than its bound), and `not_judgeable`: no bound was
    seen to be broken, but one of them is on a time that the client could not see. TPOT does not apply to an answer of
    one token, so it cannot be missed there.
    """
    ok = (requests["status"] == "ok").to_numpy(dtype=np.bool_)
    missed: dict[str, NDArray[np.bool_]] = {"failed": ~ok}
    late, unseen = np.zeros_like(ok), np.zeros_like(ok)
    single = (requests["tokens"] <= 1).fillna(False).to_numpy(dtype=np.bool_)
    for metric, bound_ms in slo.bounds_ms.items():
        value = requests[judged_column(requests, metric)].to_numpy(dtype=np.float64)
        missed[metric] = ok & (value > bound_ms / 1e3)
        late |= missed[metric]
        applies = ~single if metric == "tpot" else ok
        unseen |= ok & applies & ~np.isfinite(value)
    missed[NOT_JUDGEABLE] = unseen & ~late
    return missed


def met(requests: pd.DataFrame, slo: Slo) -> NDArray[np.bool_]:
    """True for each request that met every bound."""
    return np.asarray(~np.logical_or.reduce(list(misses(requests, slo).values())), dtype=np.bool_)
