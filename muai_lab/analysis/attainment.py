"""The requests of a frame that meet the SLO, by the rule of `muai_lab.slo`.

Attainment = requests that meet every bound ÷ all requests due in the window. An error, a timeout, a rejection or a
cancellation is a miss. A request whose bounded latency the client could not see is not judgeable, and does not meet the
SLO. Goodput = requests that meet every bound ÷ window.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from muai_lab.analysis.metrics import judged_metric
from muai_lab.arrays import Bools
from muai_lab.slo import Slo, keeps

NOT_JUDGEABLE = "not_judgeable"


def misses(requests: pd.DataFrame, slo: Slo) -> dict[str, Bools]:
    """Return the requests that did not meet the SLO, by reason.

    Args:
        requests: Rows of `Run.requests`.
        slo: The bounds.

    Returns:
        A mask over the rows for each reason. `failed`: the status is not ok. The name of a bounded metric: it was seen
        and exceeds its bound. `not_judgeable`: no bound was seen to be broken, but a bounded latency was not seen.
    """
    ok = (requests["status"] == "ok").to_numpy(dtype=np.bool_)
    tokens = requests["tokens"].to_numpy(dtype=np.float64, na_value=np.nan)
    missed: dict[str, Bools] = {"failed": ~ok}
    late, unseen = np.zeros_like(ok), np.zeros_like(ok)
    for metric, bound_s in slo.bounds_s.items():
        latency_s = requests[judged_metric(requests, metric).column].to_numpy(dtype=np.float64)
        broken = ok & ~keeps(metric, latency_s, tokens, bound_s)
        seen = np.isfinite(latency_s)
        missed[metric] = broken & seen
        late |= missed[metric]
        unseen |= broken & ~seen
    missed[NOT_JUDGEABLE] = unseen & ~late
    return missed


def met(requests: pd.DataFrame, slo: Slo) -> Bools:
    """Return a mask of the requests that met every bound."""
    return np.asarray(~np.logical_or.reduce(list(misses(requests, slo).values())), dtype=np.bool_)
