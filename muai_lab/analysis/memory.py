"""The memory of a run: the time for which its state depends on its past."""

from __future__ import annotations

import numpy as np

from muai_lab.analysis.dependence import MeasuredSpan, middles_s, span_of
from muai_lab.analysis.frames import Run
from muai_lab.analysis.metrics import judged_metric
from muai_lab.analysis.window import in_flight


def run_span(run: Run) -> MeasuredSpan | None:
    """Return the measurement window of a run with its memory; None if the run has no window.

    The memory is the longest among requests in flight, TTFT, TPOT and E2E of the successful requests.
    """
    window = run.window
    if window is None or window.duration_s <= 0.0:
        return None
    ok = run.measured[run.measured["status"] == "ok"]
    due_s = ok["due_s"].to_numpy(dtype=np.float64)
    metrics = (judged_metric(run.requests, name) for name in ("ttft", "tpot", "e2e"))
    return span_of(
        window.start_s,
        window.duration_s,
        run.measured["due_s"].to_numpy(dtype=np.float64),
        in_flight(run.requests, middles_s(window.start_s, window.duration_s)),
        [(ok[metric.column].to_numpy(dtype=np.float64), due_s) for metric in metrics],
    )
