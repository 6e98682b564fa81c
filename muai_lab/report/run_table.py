"""The result of one run as the terminal shows it."""

from __future__ import annotations

from muai_lab.analysis.attainment import NOT_JUDGEABLE
from muai_lab.analysis.configuration import redacted
from muai_lab.analysis.metrics import METRICS
from muai_lab.analysis.summary_schema import RequestCounts, Summary, value_of
from muai_lab.report.sheet import Grid, Sheet
from muai_lab.report.wording import agreement_line, engine_line, interval, load_line, verdict_line, workload_line
from muai_lab.slo import Slo
from muai_lab.wording import MISSING, count, milliseconds, number, percent, size


def result_table(summary: Summary) -> Sheet:
    """Return the result of one run. The first line states if it is valid."""
    window, identity = summary.window, summary.identity
    facts = [("engine", engine_line(summary))]
    facts += [("skipped", f"{engine}: {redacted(reason)}") for engine, reason in identity.skipped_engines]
    if (agreement := agreement_line(summary)) is not None:
        facts.append(("agreement", agreement))
    facts.append(("model", identity.model or "not known"))
    if (workload := workload_line(summary)) is not None:
        facts.append(("workload", workload))
    facts.append(("load", load_line(summary)))
    if window.duration_s is not None:
        facts.append(("window", f"{number(window.duration_s)} s, from {number(window.start_s)} s after the start"))
    facts.append(("requests", _counts(summary.requests)))
    grids = [_throughput(summary)]
    further = (_latency(summary), _breakdown(summary), _slo(summary), _server(summary))
    grids += [found for found in further if found is not None]
    notes = tuple(redacted(warning) for warning in summary.validity.warnings)
    return Sheet(redacted(verdict_line(summary)), summary.validity.valid, tuple(facts), tuple(grids), notes)


def _counts(counts: RequestCounts) -> str:
    listed = ", ".join(
        f"{requests:,} {status}" for status, requests in counts.by_status.items() if requests or status == "ok"
    )
    return f"{counts.due:,} due in the window: {listed}"


def _throughput(summary: Summary) -> Grid:
    throughput = summary.throughput
    rows = [("offered", number(throughput.offered_rps), "requests/s", "")]
    if throughput.answered_rps is not None:
        rows.append(("of these answered", number(throughput.answered_rps), "requests/s", ""))
    for name, rate, unit in (
        ("completed", throughput.requests_per_s, "requests/s"),
        ("output", throughput.output_tokens_per_s, "tokens/s"),
        ("prompt", throughput.prompt_tokens_per_s, "tokens/s"),
    ):
        rows.append((name, number(value_of(rate)), unit, interval(rate)))
    if summary.cached_share is not None:
        rows.append(("prompt from the cache", number(100 * summary.cached_share), "%", ""))
    return Grid("throughput", ("", "value", "unit", "95 % interval"), tuple(rows), "lrlr")


def _latency(summary: Summary) -> Grid | None:
    rows = []
    for metric in METRICS:
        latency = summary.latency.get(metric.column)
        if latency is None:
            continue
        cells = [
            milliseconds(value_of(estimate)) + _mark(summary, metric.column, name)
            for name, estimate in latency.estimates.items()
        ]
        intervals = [interval(estimate, 1e3) or MISSING for estimate in (latency.p50, latency.p99)]
        rows.append((metric.short, *cells, *intervals))
    if not rows:
        return None
    columns = ("", "mean", "p50", "p90", "p95", "p99", "p50 95 % interval", "p99 95 % interval")
    return Grid("latency in ms", columns, tuple(rows), "lrrrrrrr")


def _mark(summary: Summary, column: str, statistic: str) -> str:
    """The mark of a figure of which the load generator itself can explain too much; a warning explains it."""
    shown = summary.estimate(column, statistic) is not None
    return "*" if shown and summary.client_part_s(column, statistic) is not None else ""


def _breakdown(summary: Summary) -> Grid | None:
    found = summary.breakdown
    if found is None:
        return None
    rows = [
        (
            row.name,
            count(row.due),
            count(row.ok),
            count(row.prompt_tokens_p50),
            percent(row.cached_share),
            milliseconds(row.ttft_p50_s),
            milliseconds(row.tpot_p50_s),
            milliseconds(row.e2e_p50_s),
        )
        for row in found.rows
    ]
    columns = (found.by, "due", "ok", "prompt tokens", "cached", "TTFT", "TPOT", "E2E")
    return Grid(f"by {found.by}: medians, latency in ms", columns, tuple(rows), "lrrrrrrr")


def _slo(summary: Summary) -> Grid | None:
    slo = summary.slo
    if slo is None:
        return None
    bounds_ms = Slo(slo.ttft_ms, slo.tpot_ms, slo.e2e_ms).bounds_ms
    bounds = ", ".join(f"{name.upper()} <= {bound:g} ms" for name, bound in bounds_ms.items())
    verdict = MISSING if slo.met is None else "met" if slo.met else "not met"
    attainment, between = slo.attainment, ""
    if attainment is not None and interval(attainment):
        between = f"{percent(attainment.low)} to {percent(attainment.high)}"
    rows = [
        ("attainment", percent(value_of(attainment)), verdict, between),
        ("goodput", number(value_of(slo.goodput_rps)), "requests/s", interval(slo.goodput_rps)),
    ]
    missed = dict(slo.missed or {})
    unseen = missed.pop(NOT_JUDGEABLE, 0)
    rows += [(f"missed: {reason}", str(requests), "requests", "") for reason, requests in missed.items()]
    if unseen:
        rows.append(("not judgeable", str(unseen), "requests", ""))
    title = f"SLO: {bounds} for {percent(slo.quantile)} of the requests"
    return Grid(title, ("", "value", "unit", "95 % interval"), tuple(rows), "lrlr")


def _server(summary: Summary) -> Grid | None:
    server = summary.server
    if server is None:
        return None
    rows = [
        ("running, mean", number(server.running_mean), "sequences"),
        ("waiting, mean", number(server.waiting_mean), "requests"),
        ("waiting, most", count(server.waiting_max), "requests"),
        ("batch per step, mean", number(server.batch_mean), "sequences"),
        ("step, mean", milliseconds(server.step_mean_s), "ms"),
        ("CPU, mean", number(server.cpu_mean_percent), "%"),
        ("memory, most", *_split(size(server.resident_max_bytes))),
        ("GPU memory, most", *_split(size(server.gpu_memory_max_bytes))),
        ("KV cache hit rate", percent(server.kv_cache_hit_rate), "of the prompt tokens"),
    ]
    known = tuple(row for row in rows if row[1] != MISSING)
    return Grid("server, during the window", ("", "value", "unit"), known, "lrl") if known else None


def _split(written: str) -> tuple[str, str]:
    value, _, unit = written.partition(" ")
    return value, unit
