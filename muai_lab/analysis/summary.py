"""The summary of one run: its validity, then the metrics over its window.

The document has units in its key names. A figure that does not apply, or that cannot be derived from the run, is null;
no value is NaN, and no missing value is 0. An estimate is `{"value", "low", "high"}`: the figure and the ends of its
95 % interval. If the window is too short for an interval, the ends are null and `needs_s` is the length of a window
that would do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from muai_lab.analysis import server_series
from muai_lab.analysis.attainment import met, misses
from muai_lab.analysis.breakdown import breakdown, cached_share
from muai_lab.analysis.client_part import parts_of
from muai_lab.analysis.dependence import MeasuredSpan
from muai_lab.analysis.frames import Run
from muai_lab.analysis.memory import run_span
from muai_lab.analysis.metrics import METRICS, Metric
from muai_lab.analysis.precision import automatic_note, interval_step, precision_of, precision_warning
from muai_lab.analysis.samples import completed_requests, delivered_prompts, delivered_tokens, samples_of
from muai_lab.analysis.statistics import Estimate, describe, rate, share
from muai_lab.analysis.summary_schema import (
    GeneratorSummary,
    LatencySummary,
    MeasuredWindow,
    PromptFacts,
    ReportedEstimate,
    RequestCounts,
    RunIdentity,
    ServerSummary,
    SloSummary,
    Summary,
    ThroughputSummary,
    Validity,
    WindowEnd,
    checked,
)
from muai_lab.analysis.validity import cut_short, validity_of
from muai_lab.analysis.visibility import asked_and_got, visibility
from muai_lab.errors import RunError
from muai_lab.request_status import STATUSES
from muai_lab.slo import Slo


def summarise(run: Run) -> Summary:
    """Return the summary of a run. The same records give the same figures.

    Raises:
        RunError: The manifest has a value of another type than this version writes.
    """
    try:
        return checked(_summary(run))
    except msgspec.ValidationError as problem:
        raise RunError(f"{run.path / 'manifest.json'} does not fit the summary: {problem}") from problem


def _summary(run: Run) -> Summary:
    measured, span = run.measured, run_span(run)
    summary = Summary(
        validity=validity_of(run),
        identity=_identity(run),
        window=_window(run),
        requests=_counts(run.requests, measured),
        visibility=visibility(run),
        asked=asked_and_got(run),
        throughput=_throughput(run, measured, span),
        latency={metric.column: _latency(run, metric, span) for metric in METRICS},
        cached_share=cached_share(measured[measured["status"] == "ok"]),
        breakdown=breakdown(measured),
        slo=_slo(measured, run.slo, span),
        server=_server(run),
        generator=_generator(run),
    )
    summary = msgspec.structs.replace(summary, precision=precision_of(summary, span))
    return msgspec.structs.replace(summary, validity=_with_precision(summary))


def _with_precision(summary: Summary) -> Validity:
    """The validity with the notes on intervals, and the step that gives the headline one."""
    validity = summary.validity
    notes = tuple(note for note in (automatic_note(summary), precision_warning(summary)) if note)
    step = interval_step(summary) if validity.valid else validity.next_step
    return msgspec.structs.replace(validity, warnings=(*validity.warnings, *notes), next_step=step)


def _identity(run: Run) -> RunIdentity:
    engine = run.manifest.get("engine") or {}
    model = run.manifest.get("model") or {}
    load = run.manifest.get("load") or {}
    prompts = load.get("prompts")
    return RunIdentity(
        engine=engine.get("name"),
        engine_version=engine.get("version"),
        device=engine.get("device"),
        dtype=engine.get("dtype"),
        engine_details=dict(engine.get("details") or {}),
        skipped_engines=msgspec.convert(run.manifest.get("skipped_engines") or [], tuple[tuple[str, str], ...]),
        model=load.get("asked_model") or model.get("name"),
        asked_model=load.get("asked_model"),
        prompts=msgspec.convert(prompts, PromptFacts) if prompts else None,
        model_hash=model.get("content_hash"),
        workload=load.get("workload"),
        workload_kind=load.get("workload_kind"),
        arrival=load.get("kind"),
        rate_rps=load.get("rate"),
        sessions=load.get("sessions"),
        concurrency=load.get("concurrency"),
        target=load.get("target"),
        schedule_hash=run.manifest.get("schedule_hash"),
        seed=run.manifest.get("seed"),
    )


def _window(run: Run) -> MeasuredWindow:
    window = run.window
    automatic = (run.manifest.get("load") or {}).get("automatic")
    return MeasuredWindow(
        start_s=window.start_s if window else None,
        end_s=window.end_s if window else None,
        duration_s=window.duration_s if window else None,
        drain_end_s=window.drain_end_s if window else None,
        cut_short=cut_short(run),
        automatic=None if automatic is None else msgspec.convert(automatic, WindowEnd),
    )


def _counts(requests: pd.DataFrame, measured: pd.DataFrame) -> RequestCounts:
    by_status = measured["status"].value_counts()
    return RequestCounts(
        due=len(measured),
        outside_window=len(requests) - len(measured),
        **{status: int(by_status.get(status, 0)) for status in STATUSES},
    )


def _throughput(run: Run, measured: pd.DataFrame, span: MeasuredSpan | None) -> ThroughputSummary:
    """The rates over the window: requests offered (due) and completed, tokens received.

    A request counts as completed, and a token as received, when it arrives. So the drain adds nothing, and a system
    over its capacity shows its capacity, not the offered rate. Tokens of requests that failed later do not count.
    `answered_rps` counts the requests offered in the window that were answered at any time, so it never exceeds
    `offered_rps`. The completed requests can exceed it, since they include requests of the warm-up.
    """
    window = run.window
    if span is None or window is None:
        return ThroughputSummary()
    ok = run.requests[run.requests["status"] == "ok"]
    completed, tokens, prompts = completed_requests(run), delivered_tokens(run), delivered_prompts(run)
    counted = bool(ok["tokens"].notna().any()) or ok.empty
    return ThroughputSummary(
        offered_rps=len(measured) / window.duration_s,
        answered_rps=int((measured["status"] == "ok").sum()) / window.duration_s,
        requests_per_s=_reported(rate(completed.amounts, completed.t_s, span)),
        output_tokens_per_s=_reported(rate(tokens.amounts, tokens.t_s, span)) if counted else None,
        prompt_tokens_per_s=(
            _reported(rate(prompts.amounts, prompts.t_s, span)) if prompts.amounts.size or ok.empty else None
        ),
    )


def _latency(run: Run, metric: Metric, span: MeasuredSpan | None) -> LatencySummary | None:
    if span is None:
        return None
    samples = samples_of(run, metric)
    found = describe(samples.values, samples.t_s, span, independent=samples.independent)
    if found.samples == 0:
        return None
    return LatencySummary(
        samples=found.samples,
        mean=_reported(found.mean),
        p50=_reported(found.quantiles["p50"]),
        p90=_reported(found.quantiles["p90"]),
        p95=_reported(found.quantiles["p95"]),
        p99=_reported(found.quantiles["p99"]),
        min=found.minimum,
        max=found.maximum,
        merged_share=samples.merged_share,
        client=parts_of(run.manifest.get("generator") or {}).get(metric.column),
    )


def _reported(estimate: Estimate) -> ReportedEstimate | None:
    if estimate.value is None:
        return None
    return ReportedEstimate(estimate.value, estimate.low, estimate.high, estimate.needs_s)


def _slo(measured: pd.DataFrame, slo: Slo | None, span: MeasuredSpan | None) -> SloSummary | None:
    if slo is None:
        return None
    bounds = SloSummary(ttft_ms=slo.ttft_ms, tpot_ms=slo.tpot_ms, e2e_ms=slo.e2e_ms, quantile=slo.quantile)
    if span is None or measured.empty:
        return bounds
    hit = met(measured, slo)
    t_s = measured["due_s"].to_numpy(dtype=np.float64)
    attainment = share(hit, t_s, span)
    return msgspec.structs.replace(
        bounds,
        attainment=_reported(attainment),
        goodput_rps=_reported(rate(np.ones(int(hit.sum())), t_s[hit], span)),
        met=attainment.value is not None and attainment.value >= slo.quantile,
        missed={reason: int(missed.sum()) for reason, missed in misses(measured, slo).items()},
    )


def _server(run: Run) -> ServerSummary | None:
    """The server's own metrics over the window; None if none were scraped."""
    window, scraped = run.window, run.server_metrics
    if window is None or scraped.empty:
        return None
    start, end = window.start_s, window.end_s
    names = server_series
    waiting = names.series(scraped, names.WAITING)
    return ServerSummary(
        running_mean=names.time_mean(names.series(scraped, names.RUNNING), start, end),
        waiting_mean=names.time_mean(waiting, start, end),
        waiting_max=names.peak(waiting, start, end),
        batch_mean=names.histogram_mean(scraped, names.BATCH, start, end),
        step_mean_s=names.histogram_mean(scraped, names.STEP, start, end),
        cpu_mean_percent=names.time_mean(names.series(scraped, names.CPU), start, end),
        resident_max_bytes=names.peak(names.series(scraped, names.RESIDENT), start, end),
        gpu_memory_max_bytes=names.peak(names.series(scraped, names.GPU_MEMORY), start, end),
        kv_cache_hit_rate=names.hit_rate(scraped, start, end),
    )


def _generator(run: Run) -> GeneratorSummary:
    stated: Mapping[str, Any] = run.manifest.get("generator") or {}
    return GeneratorSummary(**{name: stated.get(name) for name in GeneratorSummary.__struct_fields__})
