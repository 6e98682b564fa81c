"""One block of load, judged: every value of a trial is made from blocks."""

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
    """The result of one block.

    seconds: Length of its window. due, met, failed: Requests due in the window, those that met the SLO, and those that
    did not succeed. tokens: Output tokens that arrived in the window. latencies_s: Of each request due, from its due
    time to its last token; for a request that failed, the timeout of the client. missed: Requests by the bound that
    they missed. invalid: The reason why the block measures the load generator instead of the server; None if it does
    not.
    """

    seconds: float
    due: int
    met: int
    failed: int
    tokens: float
    latencies_s: tuple[float, ...] = ()
    missed: Mapping[str, int] = field(default_factory=dict)
    invalid: str | None = None

    def record(self) -> dict[str, Any]:
        """Return the block as plain data, as a trial keeps it; latencies in tenths of a millisecond."""
        entries = asdict(self)
        entries["spoilt"] = entries.pop("invalid")  # the name that studies have it under
        return entries | {
            "missed": dict(self.missed),
            "latencies_s": [round(latency, 4) for latency in self.latencies_s],
            "seconds": round(self.seconds, 6),
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> BlockResult:
        """Return the block that `record` wrote."""
        entries = {**record, "latencies_s": tuple(record["latencies_s"])}
        return cls(invalid=entries.pop("spoilt", None), **entries)


def attainment(blocks: Sequence[BlockResult]) -> float:
    """Return the share of the requests due that met the SLO; 0 if none was due."""
    due = sum(block.due for block in blocks)
    return sum(block.met for block in blocks) / due if due else 0.0


def error_share(blocks: Sequence[BlockResult]) -> float:
    """Return the share of the requests due that failed; 1 if none was due, since nothing was served."""
    due = sum(block.due for block in blocks)
    return sum(block.failed for block in blocks) / due if due else 1.0


def judge(result: LoadResult, slo: Slo | None, request_timeout_s: float) -> BlockResult:
    """Judge a load of one block.

    Args:
        result: The load.
        slo: None without an SLO; then every success meets it.
        request_timeout_s: Timeout of the client.
    """
    return judge_rows(_rows(result), result, result.window, slo, request_timeout_s)


def judge_rows(
    requests: pd.DataFrame, result: LoadResult, window: Window, slo: Slo | None, request_timeout_s: float
) -> BlockResult:
    """Judge the requests that were due in a window.

    Args:
        requests: Derived frame of the load.
        result: The load.
        window: The measurement window of the load, or a part of it.
        slo: See `judge`.
        request_timeout_s: See `judge`.
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
        invalid=result.exhausted or why_invalid(result.generator, slo),
    )


def judge_soak(result: LoadResult, slo: Slo, request_timeout_s: float, slices: int, *, stationary: bool) -> Soak:
    """Judge a load of one soak window, and its slices.

    Args:
        result: The load.
        slo: The SLO that the window judges.
        request_timeout_s: Timeout of the client.
        slices: Number of slices.
        stationary: See `soak_of`.
    """
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
    """The latency of each request that is the closest to its bound, relative to it; NaN if the request failed."""
    from muai_lab.analysis.metrics import judged_metric

    columns = [
        requests[judged_metric(requests, metric).column].to_numpy(dtype=np.float64) / bound_s
        for metric, bound_s in slo.bounds_s.items()
    ]
    closest = np.fmax.reduce(columns)
    return np.where((requests["status"] == "ok").to_numpy(dtype=np.bool_), closest, np.nan)


def why_invalid(generator: GeneratorReport, slo: Slo | None) -> str | None:
    """Return why a block measures the load generator rather than the server; None if it does not.

    The limit is that of a run, applied to the value that a trial reports. With an SLO about the first token or the end
    it is the share of requests that meet the SLO; else latency and throughput, which the verdict is about.
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
