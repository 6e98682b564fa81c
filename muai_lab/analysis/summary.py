"""The result of one run as one JSON document: is it valid, then what was measured.

Units stand in the key names. What does not apply, or cannot be told from this run, is null; nothing is NaN and nothing
missing is 0. An estimate is `{"value", "low", "high"}`: the figure and the ends of its 95 % interval. If the window is
too short for an interval, the ends are null and `needs_s` states the length of a window that would do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from muai_lab.analysis import server_series
from muai_lab.analysis.breakdown import breakdown, cached_share
from muai_lab.analysis.client_part import part_of
from muai_lab.analysis.dependence import MeasuredSpan
from muai_lab.analysis.frames import Run
from muai_lab.analysis.memory import run_span
from muai_lab.analysis.metrics import METRICS, Metric
from muai_lab.analysis.precision import automatic_note, interval_step, precision_of, precision_warning
from muai_lab.analysis.samples import completed_requests, delivered_prompts, delivered_tokens, samples_of
from muai_lab.analysis.slo import Slo, met, misses
from muai_lab.analysis.statistics import Distribution, Estimate, describe, rate, share
from muai_lab.analysis.validity import cut_short, validity_of
from muai_lab.analysis.visibility import asked_and_got, visibility

SCHEMA_VERSION = 1
STATUSES = ("ok", "error", "rejected", "cancelled", "timeout")


def summarise(run: Run) -> dict[str, Any]:
    """Everything that `summary.json` says. The same records give the same figures."""
    measured = run.measured
    window, span = run.window, run_span(run)
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "validity": validity_of(run),
        "identity": _identity(run),
        "window": {
            "start_s": window.start_s if window else None,
            "end_s": window.end_s if window else None,
            "duration_s": window.duration_s if window else None,
            "drain_end_s": window.drain_end_s if window else None,
            "cut_short": cut_short(run),
            "automatic": (run.manifest.get("load") or {}).get("automatic"),
        },
        "requests": _counts(run.requests, measured),
        "visibility": visibility(run),
        "asked": asked_and_got(run),
        "throughput": _throughput(run, measured, span),
        "latency": {metric.column: _latency(run, metric, span) for metric in METRICS},
        "cached_share": cached_share(measured[measured["status"] == "ok"]),
        "breakdown": breakdown(measured),
        "slo": _slo(measured, run.slo, span),
        "server": _server(run),
        "generator": _generator(run),
    }
    document["precision"] = precision_of(document, span)
    validity = document["validity"]
    validity["warnings"] += [note for note in (automatic_note(document), precision_warning(document)) if note]
    if validity["valid"]:
        validity["next_step"] = interval_step(document)
    return {key: clean(value) for key, value in document.items()}


def clean(value: Any) -> Any:
    """The same document with plain Python values and null instead of NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): clean(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [clean(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if value is pd.NA else value


def _identity(run: Run) -> dict[str, Any]:
    engine = run.manifest.get("engine") or {}
    model = run.manifest.get("model") or {}
    load = run.manifest.get("load") or {}
    return {
        "engine": engine.get("name"),
        "engine_version": engine.get("version"),
        "device": engine.get("device"),
        "dtype": engine.get("dtype"),
        "engine_details": dict(engine.get("details") or {}),
        "skipped_engines": [list(entry) for entry in run.manifest.get("skipped_engines") or []],
        "model": load.get("asked_model") or model.get("name"),
        "asked_model": load.get("asked_model"),
        "prompts": load.get("prompts"),
        "model_hash": model.get("content_hash"),
        "workload": load.get("workload"),
        "workload_kind": load.get("workload_kind"),
        "arrival": load.get("kind"),
        "rate_rps": load.get("rate"),
        "sessions": load.get("sessions"),
        "concurrency": load.get("concurrency"),
        "target": load.get("target"),
        "schedule_hash": run.manifest.get("schedule_hash"),
        "seed": run.manifest.get("seed"),
    }


def _counts(requests: pd.DataFrame, measured: pd.DataFrame) -> dict[str, Any]:
    by_status = measured["status"].value_counts()
    counts: dict[str, Any] = {"due": len(measured)}
    counts |= {status: int(by_status.get(status, 0)) for status in STATUSES}
    counts["outside_window"] = len(requests) - len(measured)
    return counts


def _throughput(run: Run, measured: pd.DataFrame, span: MeasuredSpan | None) -> dict[str, Any]:
    """Rates over the window alone: what was offered (due), what was completed, which tokens arrived in it.

    A request counts as completed, and a token as delivered, when it arrives; so the drain adds nothing, and a system
    over its capacity shows its capacity, not the offered rate. Tokens of requests that failed in the end do not count.
    Of what was offered, `answered_rps` is the part that was answered, whenever that was: the same requests over the
    same time, so it is never above `offered_rps`. Completions can be, since they include earlier requests.
    """
    window = run.window
    if span is None or window is None:
        names = ("offered_rps", "answered_rps", "requests_per_s", "output_tokens_per_s", "prompt_tokens_per_s")
        return dict.fromkeys(names)
    ok = run.requests[run.requests["status"] == "ok"]
    completed, tokens, prompts = completed_requests(run), delivered_tokens(run), delivered_prompts(run)
    return {
        "offered_rps": len(measured) / window.duration_s,
        "answered_rps": int((measured["status"] == "ok").sum()) / window.duration_s,
        "requests_per_s": _estimate(rate(completed.amounts, completed.t_s, span)),
        "output_tokens_per_s": (
            _estimate(rate(tokens.amounts, tokens.t_s, span)) if ok["tokens"].notna().any() or ok.empty else None
        ),
        "prompt_tokens_per_s": (
            _estimate(rate(prompts.amounts, prompts.t_s, span)) if prompts.amounts.size or ok.empty else None
        ),
    }


def _latency(run: Run, metric: Metric, span: MeasuredSpan | None) -> dict[str, Any] | None:
    if span is None:
        return None
    samples = samples_of(run, metric)
    found = describe(samples.values, samples.t_s, span, independent=samples.independent)
    if found.samples == 0:
        return None
    document = _distribution(found)
    if samples.merged_share is not None:
        document["merged_share"] = samples.merged_share
    if (client := part_of(run.manifest.get("generator") or {}, metric.column)) is not None:
        document["client"] = client
    return document


def _distribution(found: Distribution) -> dict[str, Any]:
    document: dict[str, Any] = {"samples": found.samples, "mean": _estimate(found.mean)}
    document |= {name: _estimate(estimate) for name, estimate in found.quantiles.items()}
    return document | {"min": found.minimum, "max": found.maximum}


def _estimate(estimate: Estimate) -> dict[str, float | None] | None:
    if estimate.value is None:
        return None
    document = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return document if estimate.needs_s is None else document | {"needs_s": estimate.needs_s}


def _slo(measured: pd.DataFrame, slo: Slo | None, span: MeasuredSpan | None) -> dict[str, Any] | None:
    if slo is None:
        return None
    document: dict[str, Any] = {"ttft_ms": slo.ttft_ms, "tpot_ms": slo.tpot_ms, "e2e_ms": slo.e2e_ms}
    document["quantile"] = slo.quantile
    if span is None or measured.empty:
        return document | {"attainment": None, "goodput_rps": None, "met": None, "missed": None}
    hit = met(measured, slo)
    t_s = measured["due_s"].to_numpy(dtype=np.float64)
    attainment = share(hit, t_s, span)
    document["attainment"] = _estimate(attainment)
    document["goodput_rps"] = _estimate(rate(np.ones(int(hit.sum())), t_s[hit], span))
    document["met"] = attainment.value is not None and attainment.value >= slo.quantile
    document["missed"] = {reason: int(missed.sum()) for reason, missed in misses(measured, slo).items()}
    return document


def _server(run: Run) -> dict[str, Any] | None:
    """What the server said about itself during the window; null when nothing was scraped."""
    window, scraped = run.window, run.server_metrics
    if window is None or scraped.empty:
        return None
    start, end = window.start_s, window.end_s
    names = server_series
    step_s = names.histogram_mean(scraped, names.STEP, start, end)
    return {
        "running_mean": names.time_mean(names.series(scraped, names.RUNNING), start, end),
        "waiting_mean": names.time_mean(names.series(scraped, names.WAITING), start, end),
        "waiting_max": names.peak(names.series(scraped, names.WAITING), start, end),
        "batch_mean": names.histogram_mean(scraped, names.BATCH, start, end),
        "step_mean_s": step_s,
        "cpu_mean_percent": names.time_mean(names.series(scraped, names.CPU), start, end),
        "resident_max_bytes": names.peak(names.series(scraped, names.RESIDENT), start, end),
        "gpu_memory_max_bytes": names.peak(names.series(scraped, names.GPU_MEMORY), start, end),
        "kv_cache_hit_rate": names.hit_rate(scraped, start, end),
    }


def _generator(run: Run) -> dict[str, Any]:
    generator = run.manifest.get("generator") or {}
    return {
        "verdict": generator.get("verdict"),
        "reason": generator.get("reason"),
        "cpu_share": generator.get("cpu_share"),
        "send_lag_p99_s": generator.get("send_lag_p99_s"),
        "wait_share": generator.get("wait_share"),
        "lateness_p99_s": generator.get("lateness_p99_s"),
        "cycle_share": generator.get("cycle_share"),
    }
