"""What the terminal shows at the end of a run, and of a multirun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muai_lab.analysis.configuration import redacted
from muai_lab.analysis.estimates import clients_part, estimate_of, value_of
from muai_lab.analysis.metrics import METRICS, SHORT_NAMES
from muai_lab.analysis.slo import NOT_JUDGEABLE, Slo
from muai_lab.analysis.summary import STATUSES
from muai_lab.report.sheet import Grid, Sheet
from muai_lab.report.wording import agreement_line, engine_line, interval, load_line, verdict_line, workload_line
from muai_lab.wording import MISSING, count, milliseconds, number, percent, size


def result_table(summary: Mapping[str, Any]) -> Sheet:
    """The result of one run, from its summary. The first line says whether it is valid."""
    window = summary["window"]
    identity = summary["identity"]
    facts = [("engine", engine_line(summary))]
    facts += [("skipped", f"{engine}: {redacted(str(reason))}") for engine, reason in identity["skipped_engines"]]
    if (agreement := agreement_line(summary)) is not None:
        facts.append(("agreement", agreement))
    facts.append(("model", str(identity["model"] or "not known")))
    if (workload := workload_line(summary)) is not None:
        facts.append(("workload", workload))
    facts.append(("load", load_line(summary)))
    if window["duration_s"] is not None:
        facts.append(
            ("window", f"{number(window['duration_s'])} s, from {number(window['start_s'])} s after the start")
        )
    facts.append(("requests", _counts(summary["requests"])))
    grids = [_throughput(summary)]
    further = (_latency(summary), _breakdown(summary), _slo(summary), _server(summary))
    grids += [found for found in further if found is not None]
    validity = summary["validity"]
    notes = tuple(redacted(warning) for warning in validity["warnings"])
    return Sheet(redacted(verdict_line(summary)), validity["valid"], tuple(facts), tuple(grids), notes)


def _counts(counts: Mapping[str, int]) -> str:
    listed = ", ".join(f"{counts[status]:,} {status}" for status in STATUSES if counts[status] or status == "ok")
    return f"{counts['due']:,} due in the window: {listed}"


def _throughput(summary: Mapping[str, Any]) -> Grid:
    throughput = summary["throughput"]
    rows = [("offered", number(throughput["offered_rps"]), "requests/s", "")]
    if throughput.get("answered_rps") is not None:
        rows.append(("of these answered", number(throughput["answered_rps"]), "requests/s", ""))
    for name, key, unit in (
        ("completed", "requests_per_s", "requests/s"),
        ("output", "output_tokens_per_s", "tokens/s"),
        ("prompt", "prompt_tokens_per_s", "tokens/s"),
    ):
        rows.append((name, number(value_of(throughput[key])), unit, interval(throughput[key])))
    cached = summary.get("cached_share")
    if cached is not None:
        rows.append(("prompt from the cache", number(100 * cached), "%", ""))
    return Grid("throughput", ("", "value", "unit", "95 % interval"), tuple(rows), "lrlr")


def _latency(summary: Mapping[str, Any]) -> Grid | None:
    rows = []
    for metric in METRICS:
        if not summary["latency"].get(metric.column):
            continue
        figures = {name: estimate_of(summary, metric.column, name) for name in ("mean", "p50", "p90", "p95", "p99")}
        cells = [
            milliseconds(value_of(figure)) + _mark(summary, metric.column, name) for name, figure in figures.items()
        ]
        intervals = [interval(figures[name], 1e3) or MISSING for name in ("p50", "p99")]
        rows.append((SHORT_NAMES[metric.column], *cells, *intervals))
    if not rows:
        return None
    columns = ("", "mean", "p50", "p90", "p95", "p99", "p50 95 % interval", "p99 95 % interval")
    return Grid("latency in ms", columns, tuple(rows), "lrrrrrrr")


def _mark(summary: Mapping[str, Any], column: str, figure: str) -> str:
    """The mark of a figure of which the load generator itself can explain too much; a warning explains it."""
    shown = value_of(estimate_of(summary, column, figure)) is not None
    return "*" if shown and clients_part(summary, column, figure) is not None else ""


def _breakdown(summary: Mapping[str, Any]) -> Grid | None:
    found = summary.get("breakdown")
    if found is None:
        return None
    rows = [
        (
            row["name"],
            count(row["due"]),
            count(row["ok"]),
            count(row["prompt_tokens_p50"]),
            percent(row["cached_share"]),
            *(milliseconds(row[f"{name}_p50_s"]) for name in ("ttft", "tpot", "e2e")),
        )
        for row in found["rows"]
    ]
    columns = (found["by"], "due", "ok", "prompt tokens", "cached", "TTFT", "TPOT", "E2E")
    return Grid(f"by {found['by']}: medians, latency in ms", columns, tuple(rows), "lrrrrrrr")


def _slo(summary: Mapping[str, Any]) -> Grid | None:
    slo = summary["slo"]
    if slo is None:
        return None
    bounds = Slo(slo["ttft_ms"], slo["tpot_ms"], slo["e2e_ms"]).bounds_ms
    promise = ", ".join(f"{name.upper()} <= {bound:g} ms" for name, bound in bounds.items())
    kept = MISSING if slo["met"] is None else "kept" if slo["met"] else "not kept"
    attainment = slo["attainment"]
    between = "" if not interval(attainment) else f"{percent(attainment['low'])} to {percent(attainment['high'])}"
    rows = [
        ("attainment", percent(value_of(attainment)), kept, between),
        ("goodput", number(value_of(slo["goodput_rps"])), "requests/s", interval(slo["goodput_rps"])),
    ]
    missed = dict(slo["missed"] or {})
    unseen = missed.pop(NOT_JUDGEABLE, 0)
    rows += [(f"missed: {reason}", str(rows_missed), "requests", "") for reason, rows_missed in missed.items()]
    if unseen:
        rows.append(("not judgeable", str(unseen), "requests", ""))
    title = f"SLO: {promise} for {percent(slo['quantile'])} of the requests"
    return Grid(title, ("", "value", "unit", "95 % interval"), tuple(rows), "lrlr")


def _server(summary: Mapping[str, Any]) -> Grid | None:
    server = summary["server"]
    if server is None:
        return None
    rows = [
        ("running, mean", number(server["running_mean"]), "sequences"),
        ("waiting, mean", number(server["waiting_mean"]), "requests"),
        ("waiting, most", count(server["waiting_max"]), "requests"),
        ("batch per step, mean", number(server["batch_mean"]), "sequences"),
        ("step, mean", milliseconds(server["step_mean_s"]), "ms"),
        ("CPU, mean", number(server["cpu_mean_percent"]), "%"),
        ("memory, most", *_split(size(server["resident_max_bytes"]))),
        ("GPU memory, most", *_split(size(server["gpu_memory_max_bytes"]))),
        ("KV cache hit rate", percent(server["kv_cache_hit_rate"]), "of the prompt tokens"),
    ]
    known = tuple(row for row in rows if row[1] != MISSING)
    return Grid("server, during the window", ("", "value", "unit"), known, "lrl") if known else None


def _split(written: str) -> tuple[str, str]:
    value, _, unit = written.partition(" ")
    return value, unit
