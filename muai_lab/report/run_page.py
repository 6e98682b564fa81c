"""`report.html`: one page about one run, for managers and engineers.

Self-contained (no script, no font, no image from elsewhere), printable, usable by keyboard and screen reader. Every
text that came from outside (errors, reasons, settings) is escaped, and secrets are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from muai_lab.analysis.configuration import entries, redacted, shown
from muai_lab.analysis.frames import Run, flatten
from muai_lab.analysis.metrics import METRICS, judged_metric, shown_in
from muai_lab.analysis.samples import samples_of
from muai_lab.analysis.summary import summarise
from muai_lab.analysis.summary_schema import ReportedEstimate, ReportedTrend, Summary, value_of
from muai_lab.report.page import render_page, write_page
from muai_lab.report.repetition import repeat_commands
from muai_lab.report.run_plots import latency_figure, timeline_figure
from muai_lab.report.run_table import result_table
from muai_lab.report.slowest import slowest_requests
from muai_lab.report.wording import (
    agreement_line,
    engine_line,
    headline,
    interval,
    load_line,
    prompts_line,
    verdict_line,
    workload_line,
)
from muai_lab.wording import MISSING, duration, number, percent, plural

_MOST_FAILURES = 10


@dataclass(frozen=True, slots=True)
class Card:
    """A key figure with its 95 % interval, as text."""

    label: str
    figure: str
    unit: str
    interval: str


@dataclass(frozen=True, slots=True)
class LatencySection:
    """The plots of one latency metric. samples: their number. note: what a reader must know of them, None without."""

    id: str
    title: str
    definition: str
    samples: str
    note: str | None
    svg: Markup


def write_report(run: Run, summary: Summary | None = None) -> Path:
    """Write `report.html` into the run's directory and return its path; the file appears whole or not at all.

    Raises RunError when the directory cannot be written.
    """
    return write_page(run.path / "report.html", render_report(run, summary))


def render_report(run: Run, summary: Summary | None = None) -> str:
    """The report as one HTML document. summary: as `summarise` gives it; made here if None."""
    summary = summarise(run) if summary is None else summary
    validity = summary.validity
    settings = entries(run)
    timeline = timeline_figure(run, name="timeline")
    context: dict[str, Any] = {
        "kind": "report",
        "eyebrow": f"muai_lab, run {run.path.name}",
        "title": _title(run, summary),
        "headline": redacted(headline(summary)),
        "valid": validity.valid,
        "verdict": redacted(verdict_line(summary)),
        "warnings": [redacted(warning) for warning in validity.warnings],
        "checks": _checks(summary),
        "cards": _cards(summary),
        "facts": _facts(run, summary),
        "grids": result_table(summary).grids,
        "figures": _latency_sections(run, summary),
        "timeline": None if timeline is None else Markup(timeline),
        "slowest": slowest_requests(run),
        "failures": _failures(run),
        "changed": [entry for entry in settings if entry.changed],
        "settings": settings,
        "environment": _environment(run),
        "commands": repeat_commands(run),
        "definitions": METRICS,
    }
    return render_page("report.html.j2", context)


def _title(run: Run, summary: Summary) -> str:
    identity = summary.identity
    what = " on ".join(part for part in (identity.model, identity.engine) if part)
    return what or f"Run {run.path.name}"


def _checks(summary: Summary) -> list[tuple[str, str, str]]:
    """The checks behind the verdict: name, outcome, evidence."""
    validity, generator = summary.validity, summary.generator
    evidence = []
    if generator.cpu_share is not None:
        evidence.append(f"used {percent(generator.cpu_share)} of one CPU core")
    if generator.wait_share is not None:
        evidence.append(f"waited for a processor {percent(generator.wait_share)} of the time")
    if generator.lateness_p99_s is not None:
        evidence.append(f"99 % of the beats of its loop came within {duration(generator.lateness_p99_s)}")
    if generator.send_lag_p99_s is not None and not summary.identity.closed_loop:
        evidence.append(f"sent 99 % of the requests within {duration(generator.send_lag_p99_s)} of their time")
    steady, _, why = validity.steadiness.partition(": ")
    moved = "; ".join(_trends(validity.trends))
    return [
        ("Run", validity.status, "went to its end" if validity.status == "complete" else "did not end by itself"),
        (
            "Load generator",
            validity.generator or "not known",
            redacted(generator.reason or "; ".join(evidence)),
        ),
        ("System", steady, why or moved or "no trend in queue, TTFT or TPOT over the window"),
    ]


def _trends(trends: Sequence[ReportedTrend]) -> list[str]:
    """The change of each signal over the window, and the smallest one that the run could have shown.

    A run that could only have shown more than a doubling has no evidence about smaller changes: no interval then.
    """
    changes: list[str] = []
    weak: list[str] = []
    for found in trends:
        if found.low is None or found.high is None or found.smallest_found is None:
            continue
        if found.smallest_found > 1.0:
            weak.append(f"{found.signal} {_signed(found.smallest_found)}")
            continue
        changes.append(
            f"{found.signal} changed by {_signed(found.low)} to {_signed(found.high)} "
            f"(a rise by {percent(found.smallest_found)} would have shown)"
        )
    if weak:
        changes.append(f"too short to show any but large rises: {', '.join(weak)}")
    return changes


def _signed(share: float) -> str:
    return f"{share * 100:+,.0f} %"


def _cards(summary: Summary) -> list[Card]:
    """The key figures; none without a request in the window."""
    if not summary.requests.due:
        return []
    throughput, slo = summary.throughput, summary.slo
    ttft, e2e = summary.judged("ttft"), summary.judged("e2e")
    cards = [
        _card("Requests", throughput.requests_per_s, "per second"),
        _card("Output tokens", throughput.output_tokens_per_s, "per second"),
        _latency_card("First token, median", summary, ttft, "p50"),
        _latency_card("First token, p99", summary, ttft, "p99"),
        _latency_card("Per token, median", summary, "tpot_s", "p50"),
        _latency_card("Whole answer, median", summary, e2e, "p50"),
    ]
    if slo is not None:
        cards.append(_card("Met the SLO", slo.attainment, "% of requests", 100.0))
        cards.append(_card("Goodput", slo.goodput_rps, "per second"))
    return cards


def _latency_card(label: str, summary: Summary, column: str, statistic: str) -> Card:
    estimate = summary.estimate(column, statistic)
    long = (value_of(estimate) or 0.0) >= 10.0
    marked = estimate is not None and summary.client_part_s(column, statistic) is not None
    return _card(label, estimate, "s" if long else "ms", 1.0 if long else 1e3, mark="*" if marked else "")


def _card(label: str, estimate: ReportedEstimate | None, unit: str, scale: float = 1.0, *, mark: str = "") -> Card:
    if estimate is None:
        return Card(label, MISSING, "", "too few samples")
    return Card(label, number(estimate.value * scale) + mark, unit, interval(estimate, scale))


def _facts(run: Run, summary: Summary) -> list[tuple[str, str]]:
    identity, window, counts = summary.identity, summary.window, summary.requests
    facts = [("Engine that served", engine_line(summary))]
    if (agreement := agreement_line(summary)) is not None:
        facts.append(("Agreement", agreement))
    for engine, reason in identity.skipped_engines:
        facts.append((f"Skipped: {engine}", redacted(reason)))
    facts.append(("Model", identity.model or "not known"))
    if (workload := workload_line(summary)) is not None:
        facts.append(("Workload", workload))
    if (prompts := prompts_line(summary)) is not None:
        facts.append(("Prompts", prompts))
    facts.append(("Load", load_line(summary)))
    if window.duration_s is not None:
        facts.append(("Measured", f"{number(window.duration_s)} s after {number(window.start_s)} s of warm-up"))
    counted = f"{counts.due:,}: {counts.ok:,} successful, {counts.failed:,} failed"
    facts.append(("Requests in the window", counted))
    facts.append(("Started", run.started or "not known"))
    return facts


def _latency_sections(run: Run, summary: Summary) -> list[LatencySection]:
    found = []
    for plotted in shown_in("plot"):
        name, metric = plotted.name, judged_metric(run.requests, plotted.name)
        entry = summary.latency.get(metric.column)
        if entry is None:
            continue
        values = samples_of(run, metric).values
        note = None
        if entry.merged_share:
            note = f"{percent(entry.merged_share)} of the gaps stand for several tokens that came in one chunk."
        svg = latency_figure(values, entry, name=f"figure-{name}", title=metric.title, sample=metric.sample)
        samples = plural(entry.samples, metric.sample)
        section = LatencySection(f"latency-{name}", metric.title, metric.definition, samples, note, Markup(svg))
        found.append(section)
    return found


def _failures(run: Run) -> list[tuple[str, str, str]]:
    """Failed requests of the window by status and message, the most frequent first: status, message, count."""
    measured = run.measured
    failed = measured[measured["status"] != "ok"]
    counted = Counter(
        (str(status), redacted(str(text)))
        for status, text in zip(failed["status"], failed["error"].fillna("no message"), strict=True)
    )
    return [(status, text, f"{count:,}") for (status, text), count in counted.most_common(_MOST_FAILURES)]


def _environment(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """The facts to judge and repeat the run by: titled lists of name and value."""
    manifest = run.manifest
    sections = [
        ("Engine", manifest.get("engine")),
        ("Model", manifest.get("model")),
        ("Load", manifest.get("load")),
        ("Hardware", manifest.get("hardware")),
        ("Versions", manifest.get("versions")),
        ("Source", manifest.get("git")),
        (
            "Repeatability",
            {
                "seed": manifest.get("seed"),
                "schedule hash (SHA-256)": manifest.get("schedule_hash"),
                "started": manifest.get("started"),
                "finished": manifest.get("finished"),
                "run directory": str(run.path),
            },
        ),
    ]
    return [
        (title, [(key, _written(shown(key, value))) for key, value in flatten(section).items()])
        for title, section in sections
        if isinstance(section, Mapping) and section
    ]


def _written(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, list | dict) and not value:
        return "none"
    return str(value)
