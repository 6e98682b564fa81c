"""The server's own metrics, as scraped during the run, on the client's clock.

Names are those of Prometheus samples (`batch_size_sum`, `muai_waiting_requests`). Samples that differ only in their
labels are summed: the server may hold several models. Times are seconds from the start of the load.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

RUNNING = "muai_running_sequences"
WAITING = "muai_waiting_requests"
BATCH = "batch_size"
STEP = "muai_step_seconds"
CPU = "cpu_usage_percent"
RESIDENT = "muai_process_resident_bytes"
GPU_MEMORY = "gpu_memory_used_bytes"
HIT_RATE = "kv_cache_hit_rate"
LOOKED_UP = "muai_prefix_lookup_tokens_total"
FOUND = "muai_prefix_hit_tokens_total"


def series(server_metrics: pd.DataFrame, name: str) -> pd.Series | None:
    """Return the values of one sample name by time (index: seconds from the start of the load); None if never seen."""
    rows = server_metrics[server_metrics["name"] == name]
    rows = rows[np.isfinite(rows["value"]) & np.isfinite(rows["t_s"])]
    if rows.empty:
        return None
    summed: pd.Series = rows.groupby("t_s", sort=True)["value"].sum()
    return summed.rename(name)


def time_mean(gauge: pd.Series | None, start_s: float, end_s: float) -> float | None:
    """Return the mean of a gauge over `[start_s, end_s)`, weighted by time; None without a sample in the window.

    A value holds until the next sample; before the first sample in the window, the last earlier one holds.
    """
    if gauge is None or not end_s > start_s:
        return None
    t = gauge.index.to_numpy(dtype=np.float64)
    values = gauge.to_numpy(dtype=np.float64)
    inside = int(np.searchsorted(t, start_s, side="left"))
    last = int(np.searchsorted(t, end_s, side="left"))
    if inside == last:
        return None
    first = max(inside - 1, 0)
    edges = np.append(np.maximum(t[first:last], start_s), end_s)
    return float(np.average(values[first:last], weights=np.diff(edges)))


def peak(gauge: pd.Series | None, start_s: float, end_s: float) -> float | None:
    """Return the largest value of a gauge in the window; None without any."""
    if gauge is None:
        return None
    inside = gauge[(gauge.index >= start_s) & (gauge.index < end_s)]
    return float(inside.max()) if len(inside) else None


def increase(counter: pd.Series | None, start_s: float, end_s: float) -> float | None:
    """Return the growth of a counter from the last sample before the window to the last one in it.

    None if there are too few samples, or if the counter was reset.
    """
    if counter is None:
        return None
    t = counter.index.to_numpy(dtype=np.float64)
    values = counter.to_numpy(dtype=np.float64)
    begin = max(int(np.searchsorted(t, start_s, side="right")) - 1, 0)
    finish = int(np.searchsorted(t, end_s, side="right")) - 1
    if finish <= begin:
        return None
    growth = float(values[finish] - values[begin])
    return growth if growth >= 0 else None  # a smaller value: the server was restarted in between


def histogram_mean(server_metrics: pd.DataFrame, name: str, start_s: float, end_s: float) -> float | None:
    """Return the mean of a histogram's observations in the window: growth of `_sum` ÷ growth of `_count`."""
    total = increase(series(server_metrics, f"{name}_sum"), start_s, end_s)
    count = increase(series(server_metrics, f"{name}_count"), start_s, end_s)
    return total / count if total is not None and count else None


def hit_rate(server_metrics: pd.DataFrame, start_s: float, end_s: float) -> float | None:
    """Return the share of the prompt tokens looked up in the window that the cache held.

    It is the ratio of the growth of two counters; if the server has only a gauge, its mean weighted by time.
    """
    looked_up = increase(series(server_metrics, LOOKED_UP), start_s, end_s)
    found = increase(series(server_metrics, FOUND), start_s, end_s)
    if looked_up is not None and found is not None:
        return found / looked_up if looked_up else None
    if series(server_metrics, LOOKED_UP) is not None:
        return None
    return time_mean(series(server_metrics, HIT_RATE), start_s, end_s)
