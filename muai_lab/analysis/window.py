"""The measurement window of a run, and the requests that it contains.

A run has a warm-up, a measurement window and a drain. Requests *due* in the window count, also if they end in the
drain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from muai_lab.analysis.metrics import due_ns
from muai_lab.window import Window


def window_of(manifest: Mapping[str, Any], records: pd.DataFrame, *, complete: bool) -> Window | None:
    """Return the window that the manifest states; None if neither manifest nor records have a start.

    For a run that did not end by itself, the measurement ends at the last observation if that is earlier. Time without
    observation would dilute the rates.

    Args:
        manifest: The run's manifest.
        records: Frame of raw records.
        complete: True if the run ended by itself.
    """
    stated = manifest.get("window") or {}
    observed = records[["sent_ns", "first_content_ns", "last_token_ns", "stream_end_ns"]].max().max()
    last_seen = None if pd.isna(observed) else int(observed)
    load_start = stated.get("load_start_ns")
    if load_start is None:
        earliest = due_ns(records).min()
        if pd.isna(earliest):
            return None
        load_start = int(earliest)
    measure_start = _first(stated.get("measure_start_ns"), load_start)
    measure_end = _first(stated.get("measure_end_ns"), last_seen, measure_start)
    drain_end = _first(stated.get("drain_end_ns"), last_seen, measure_end)
    if not complete:
        measure_end = min(measure_end, max(measure_start, _first(last_seen, measure_start)))
        drain_end = max(measure_end, min(drain_end, _first(last_seen, drain_end)))
    return Window(int(load_start), measure_start, max(measure_start, measure_end), max(measure_end, drain_end))


def _first(*candidates: int | None) -> int:
    return int(next(candidate for candidate in candidates if candidate is not None))


def due_in_window(records: pd.DataFrame, window: Window | None) -> pd.Series:
    """True for each request that was due in the measurement window (start included, end excluded).

    If no due time was recorded, the recorded phase decides.
    """
    by_phase = (records["phase"] == "measure").fillna(False).astype(bool)
    if window is None:
        return by_phase
    due = due_ns(records)
    inside = ((due >= window.measure_start_ns) & (due < window.measure_end_ns)).fillna(False).astype(bool)
    return inside.where(due.notna(), by_phase)


def in_flight(requests: pd.DataFrame, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the requests in flight (due, and not over) at each time: the client's view of queue plus batch.

    A request without a stamp of its end counts until the end of the run.

    Args:
        requests: Rows of `Run.requests`.
        at_s: Seconds from the start of the load. [times]

    Returns:
        [times]
    """
    return in_flight_at(requests["due_s"].dropna().to_numpy(), requests["over_s"].dropna().to_numpy(), at_s)


def in_flight_at(
    due_s: NDArray[np.float64], over_s: NDArray[np.float64], at_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return `in_flight` from the due times and the ends of the requests."""
    arrived = np.searchsorted(np.sort(due_s), at_s, side="right")
    ended = np.searchsorted(np.sort(over_s), at_s, side="right")
    return np.asarray(arrived - ended, dtype=np.float64)
