"""One block of load, judged: what every figure of a trial is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from muai_lab.arrays import Floats
    from muai_lab.load.generator import LoadResult
    from muai_lab.load.self_report import GeneratorReport
    from muai_lab.slo import Slo
    from muai_lab.tuning.soak import Soak
    from muai_lab.window import Window


@dataclass(frozen=True, slots=True)
class BlockResult:
    """What came of one block.

    seconds: length of its window. due, met, failed: requests due in the window, of them those that met the promise, and
    those that did not succeed. tokens: output tokens that arrived in the window. latencies_s: of each request due,
    from its due time to its last token; of one that failed, the time after which the client gives up. missed: requests
    by the bound that they missed. spoilt: why it measures the load generator instead of the server, else None.
    """

    seconds: float
    due: int
    met: int
    failed: int
    tokens: float
    latencies_s: tuple[float, ...] = ()
    missed: Mapping[str, int] = field(default_factory=dict)
    spoilt: str | None = None

    def record(self) -> dict[str, Any]:
        """The block as plain data, as a trial keeps it; latencies in tenths of a millisecond."""
        return asdict(self) | {
            "missed": dict(self.missed),
            "latencies_s": [round(latency, 4) for latency in self.latencies_s],
            "seconds": round(self.seconds, 6),
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> BlockResult:
        """What `record` wrote."""
        return cls(**{**record, "latencies_s": tuple(record["latencies_s"])})


def attainment(blocks: Sequence[BlockResult]) -> float:
    """Share of the requests due that met the promise; 0 when none was due."""
    due = sum(block.due for block in blocks)
    return sum(block.met for block in blocks) / due if due else 0.0


def error_share(blocks: Sequence[BlockResult]) -> float:
    """Share of the requests due that failed; 1 when none was due, for nothing was served."""
    due = sum(block.due for block in blocks)
    return sum(block.failed for block in blocks) / due if due else 1.0


def judge(result: LoadResult, slo: Slo | None, request_timeout_s: float) -> BlockResult:
    """The figures of a load of one block. slo: None when nothing was promised; then every success meets it."""
    return judge_rows(_rows(result), result, result.window, slo, request_timeout_s)


def judge_rows(
    requests: pd.DataFrame, result: LoadResult, window: Window, slo: Slo | None, request_timeout_s: float
) -> BlockResult:
    """The figures of the requests that were due in a window.

    requests: Derived frame of the load. window: All of the measurement window of the load, or a part of it.
    """
    from muai_lab.analysis.attainment import met, misses
    from muai_lab.analysis.metrics import judged_metric

    start_s, end_s = (
        (at_ns - window.load_start_ns) / 1e9 for at_ns in (window.measure_start_ns, window.measure_end_ns)
    )
    due = requests[(requests["due_s"] >= start_s) & (requests["due_s"] < end_s)]
    ok = (due["status"] == "ok").to_numpy(dtype=np.bool_)
    hit = ok if slo is None else met(due, slo)
    latencies = due[judged_metric(due, "e2e").column].to_numpy(dtype=np.float64)
    return BlockResult(
        seconds=window.duration_s,
        due=len(due),
        met=int(hit.sum()),
        failed=int((~ok).sum()),
        tokens=_tokens_in(result, window),
        latencies_s=tuple(np.where(ok & np.isfinite(latencies), latencies, request_timeout_s).tolist()),
        missed={} if slo is None else {why: int(rows.sum()) for why, rows in misses(due, slo).items()},
        spoilt=result.exhausted or spoilt_by(result.generator, slo),
    )


def judge_soak(result: LoadResult, slo: Slo, request_timeout_s: float, slices: int, *, stationary: bool) -> Soak:
    """The figures of a load of one soak window, and those of its slices. stationary: see `soak_of`."""
    from muai_lab.tuning.soak import soak_of

    requests, window = _rows(result), result.window
    start_ns, end_ns = window.measure_start_ns, window.measure_end_ns
    edges = np.linspace(start_ns, end_ns, slices + 1).round().astype(np.int64).tolist()
    parts = [
        judge_rows(
            requests,
            result,
            replace(window, measure_start_ns=first, measure_end_ns=last),
            slo,
            request_timeout_s,
        )
        for first, last in pairwise(edges)
    ]
    start_s = (start_ns - window.load_start_ns) / 1e9
    return soak_of(
        requests["due_s"].to_numpy(dtype=np.float64) - start_s,
        requests["over_s"].to_numpy(dtype=np.float64) - start_s,
        _relative_to_bound(requests, slo),
        parts,
        window.duration_s,
        stationary=stationary,
    )


def _rows(result: LoadResult) -> pd.DataFrame:
    from muai_lab.analysis.frames import requests_frame
    from muai_lab.load.records import records_table
    from muai_lab.window import Window

    return requests_frame(records_table(result.records, result.window), Window(**asdict(result.window)))


def _relative_to_bound(requests: pd.DataFrame, slo: Slo) -> Floats:
    """Of each request the latency that is the closest to its bound, relative to it; NaN if it failed."""
    from muai_lab.analysis.metrics import judged_metric

    columns = [
        requests[judged_metric(requests, metric).column].to_numpy(dtype=np.float64) / bound_s
        for metric, bound_s in slo.bounds_s.items()
    ]
    closest = np.fmax.reduce(columns)
    return np.where((requests["status"] == "ok").to_numpy(dtype=np.bool_), closest, np.nan)


def spoilt_by(generator: GeneratorReport, slo: Slo | None) -> str | None:
    """Why the block measures the load generator rather than the server; None when it does not.

    The same limit as for a run's figures, applied to the figure that a trial reports: with a promise about the first
    token or the end, the share of requests that keep it; else latency and throughput, of which the verdict is.
    """
    from muai_lab.analysis.client_part import slo_in_doubt
    from muai_lab.load.self_report import CPU_SHARE_LIMIT

    full = generator.cpu_share is not None and generator.cpu_share > CPU_SHARE_LIMIT
    if full or slo is None or (slo.ttft_ms is None and slo.e2e_ms is None):
        return generator.reason
    return slo_in_doubt({column: one.figures_s for column, one in generator.added.items()}, slo)


def _tokens_in(result: LoadResult, window: Window) -> float:
    """Output tokens of successful requests that arrived in the window, whenever their request was due."""
    start, end = window.measure_start_ns, window.measure_end_ns
    total = 0.0
    for record in result.records:
        if record.status != "ok" or not record.chunk_t_ns:
            continue
        times = np.frombuffer(record.chunk_t_ns, dtype=np.int64)
        inside = (times >= start) & (times < end)
        if record.tokens_known and len(record.chunk_tokens) == len(times):
            total += float(np.frombuffer(record.chunk_tokens, dtype=np.int32)[inside].sum())
        else:
            total += float(inside.mean()) * float(record.output_tokens or record.client_output_tokens or 0)
    return total
