"""The slowest requests of a run, and the phases in which their time was spent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from muai_lab.analysis.frames import Run
from muai_lab.analysis.metrics import NS_PER_S
from muai_lab.wording import MISSING, milliseconds

_MOST = 10


@dataclass(frozen=True, slots=True)
class SlowRequest:
    """One row of the table, as text; times in milliseconds.

    server_phases: True if the server reports queue and prefill. bars: (phase, share of the longest request in percent).
    """

    index: str
    due: str
    prompt: str
    output: str
    lag: str
    first: str
    queue: str
    prefill: str
    decode: str
    total: str
    server_phases: bool
    bars: tuple[tuple[str, str], ...]


def slowest_requests(run: Run) -> list[SlowRequest]:
    """Return the successful requests of the window with the longest end-to-end latency, the longest first."""
    measured = run.measured
    ok = measured[measured["status"] == "ok"]
    column = "e2e_from_intended_s" if ok["e2e_from_intended_s"].notna().any() else "e2e_s"
    slowest = ok[ok[column].notna()].nlargest(_MOST, column)
    longest_s = float(slowest[column].max()) if len(slowest) else 1.0
    return [_row(request, column, max(longest_s, 1e-9)) for _, request in slowest.iterrows()]


def _row(request: pd.Series, column: str, longest_s: float) -> SlowRequest:
    from_intended = column == "e2e_from_intended_s"
    total_s = float(request[column])
    lag_s = float(request["send_lag_s"]) if from_intended else 0.0
    first_s = 0.0 if pd.isna(request["ttft_s"]) else float(request["ttft_s"])
    decode_s = max(0.0, total_s - lag_s - first_s)
    queue_s, prefill_s = (_seconds(request[name]) for name in ("server_queue_ns", "server_prefill_ns"))
    phases = {"lag": lag_s, "first-token": first_s, "decode": decode_s}
    if server_phases := queue_s is not None and prefill_s is not None:
        between_s = max(0.0, first_s - (queue_s or 0.0) - (prefill_s or 0.0))
        server = {"queue": queue_s or 0.0, "prefill": prefill_s or 0.0, "between": between_s}
        phases = {"lag": lag_s, **server, "decode": decode_s}
    return SlowRequest(
        index=_count(request["index"]),
        due=f"{request['due_s']:.2f}",
        prompt=_count(request["prompt_tokens"]),
        output=_count(request["tokens"]),
        lag=milliseconds(lag_s) if from_intended else MISSING,
        first=milliseconds(first_s),
        queue=milliseconds(queue_s),
        prefill=milliseconds(prefill_s),
        decode=milliseconds(decode_s),
        total=milliseconds(total_s),
        server_phases=server_phases,
        bars=tuple((name, f"{phase_s / longest_s * 100:.1f}") for name, phase_s in phases.items()),
    )


def _seconds(value_ns: Any) -> float | None:
    return None if pd.isna(value_ns) else int(value_ns) / NS_PER_S


def _count(value: Any) -> str:
    return MISSING if pd.isna(value) else f"{int(value):,}"
