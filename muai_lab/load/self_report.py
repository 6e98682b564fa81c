"""What the load generator says about itself: how late it was, how busy it was, and whether that spoilt the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from muai_lab.load.records import RequestRecord, Window

Verdict = Literal["ok", "client_saturated"]

# A loop that sends late also reads late, so lag is a measure of the error of every time in the records. Up to 5 ms
# are within what a request to a real server may be off; a slower server tolerates a proportionally slower client.
LAG_LIMIT_S = 0.005
LAG_LIMIT_OF_TTFT = 0.05
# The loop runs on one thread: near one full core it has no reserve, and queues form in the client. In the closed loop
# this is the only sign, since a late loop also releases its slots late.
CPU_SHARE_LIMIT = 0.9


@dataclass(frozen=True, slots=True)
class GeneratorReport:
    """How the generator itself did in the measurement window.

    cpu_share: CPU time of the loop's thread divided by wall time, None when there was no window. send_lag_*_s: `sent`
    minus due time over the requests due in the window, None when none was sent. longest_stall_s: the longest time for
    which the event loop did not turn although it should have. workers: one report for each, when several processes or
    machines shared the load; the busiest one's share is then `cpu_share`, and any one's verdict is the verdict.
    """

    cpu_share: float | None
    send_lag_p50_s: float | None
    send_lag_p99_s: float | None
    send_lag_max_s: float | None
    verdict: Verdict
    reason: str | None
    longest_stall_s: float | None = None
    workers: tuple[WorkerReport, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """How one of several generators did; the values are those of its own `GeneratorReport`.

    clock_offset_s: its monotonic clock minus ours, taken off its times; clock_error_s: by how much that may be wrong.
    Both are 0 on one machine, whose processes share a clock.
    """

    name: str
    requests: int
    cpu_share: float | None
    send_lag_p99_s: float | None
    verdict: Verdict
    reason: str | None
    clock_offset_s: float = 0.0
    clock_error_s: float = 0.0


def report_on_generator(
    records: Sequence[RequestRecord], window: Window, cpu_share: float | None, *, stall_s: float | None = None
) -> GeneratorReport:
    """Judge the generator by its records.

    `client_saturated` when the p99 of the send lag exceeds both `LAG_LIMIT_S` and `LAG_LIMIT_OF_TTFT` of the median
    time to first token, or the CPU share exceeds `CPU_SHARE_LIMIT`.
    """
    due = [record for record in records if window.phase(record.due_ns) == "measure" and record.sent_ns is not None]
    lags_s = np.array([(record.sent_ns or 0) - record.sendable_ns for record in due], dtype=np.float64) / 1e9
    ttfts_s = [
        (record.first_content_ns - record.sent_ns) / 1e9
        for record in due
        if record.first_content_ns is not None and record.sent_ns is not None
    ]
    p50, p99, longest = (np.quantile(lags_s, [0.5, 0.99, 1.0]).tolist()) if len(lags_s) else (None, None, None)
    reason = None
    if p99 is not None:
        limit_s = max(LAG_LIMIT_S, LAG_LIMIT_OF_TTFT * float(np.median(ttfts_s))) if ttfts_s else LAG_LIMIT_S
        if p99 > limit_s:
            reason = f"p99 of the send lag is {p99 * 1e3:.1f} ms, more than {limit_s * 1e3:.1f} ms"
    if cpu_share is not None and cpu_share > CPU_SHARE_LIMIT:
        busy = f"the load generator used {cpu_share:.0%} of a core, more than {CPU_SHARE_LIMIT:.0%}"
        reason = busy if reason is None else f"{reason}; {busy}"
    return GeneratorReport(
        cpu_share=cpu_share,
        send_lag_p50_s=p50,
        send_lag_p99_s=p99,
        send_lag_max_s=longest,
        verdict="ok" if reason is None else "client_saturated",
        reason=reason,
        longest_stall_s=stall_s,
    )


def report_on_generators(
    records: Sequence[RequestRecord], window: Window, workers: Sequence[tuple[WorkerReport, GeneratorReport]]
) -> GeneratorReport:
    """Judge several generators together by all their records; the worst of them decides."""
    shares = [own.cpu_share for _, own in workers if own.cpu_share is not None]
    stalls = [own.longest_stall_s for _, own in workers if own.longest_stall_s is not None]
    together = report_on_generator(records, window, max(shares, default=None), stall_s=max(stalls, default=None))
    saturated = [f"{worker.name}: {own.reason}" for worker, own in workers if own.verdict == "client_saturated"]
    if saturated:
        together = replace(together, verdict="client_saturated", reason="; ".join(saturated))
    return replace(together, workers=tuple(worker for worker, _ in workers))
