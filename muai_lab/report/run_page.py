"""`report.html`: one page about one run that a manager and an engineer both can read.

Self-contained (no script, no font, no image from elsewhere), printable, usable by keyboard and screen reader. Every
text that came from outside (errors, reasons, settings) is escaped, and secrets are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from muai_lab.analysis.configuration import entries, redacted, shown
from muai_lab.analysis.estimates import clients_part, estimate_of, judged, value_of
from muai_lab.analysis.frames import Run, flatten
from muai_lab.analysis.metrics import METRIC_BY_NAME, METRICS, NS_PER_S
from muai_lab.analysis.samples import samples_of
from muai_lab.analysis.summary import summarise
from muai_lab.report.page import render_page, write_page
from muai_lab.report.repetition import repeat_commands
from muai_lab.report.run_plots import latency_figure, timeline_figure
from muai_lab.report.run_table import result_table
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
from muai_lab.wording import MISSING, duration, milliseconds, number, percent, plural

SLOWEST = 10
_FIGURES = ("ttft", "tpot", "itl", "e2e")


def write_report(run: Run, summary: Mapping[str, Any] | None = None) -> Path:
    """Write `report.html` into the run's directory and return its path; the file appears whole or not at all.

    Raises RunError when the directory cannot be written.
    """
    return write_page(run.path / "report.html", render_report(run, summary))


def render_report(run: Run, summary: Mapping[str, Any] | None = None) -> str:
    """The report as one HTML document. summary: as `summarise` gives it; made here if None."""
    summary = summarise(run) if summary is None else summary
    validity = summary["validity"]
    settings = entries(run)
    timeline = timeline_figure(run, name="timeline")
    context: dict[str, Any] = {
        "kind": "report",
        "eyebrow": f"muai_lab, run {run.path.name}",
        "title": _title(run, summary),
        "headline": redacted(headline(summary)),
        "valid": validity["valid"],
        "verdict": redacted(verdict_line(summary)),
        "warnings": [redacted(warning) for warning in validity["warnings"]],
        "checks": _checks(summary),
        "cards": _cards(summary),
        "facts": _facts(run, summary),
        "grids": result_table(summary).grids,
        "figures": _latency_figures(run, summary),
        "timeline": None if timeline is None else Markup(timeline),
        "slowest": _slowest(run),
        "failures": _failures(run),
        "changed": [entry for entry in settings if entry.changed],
        "settings": settings,
        "environment": _environment(run),
        "commands": repeat_commands(run),
        "definitions": METRICS,
    }
    return render_page("report.html.j2", context)


def _title(run: Run, summary: Mapping[str, Any]) -> str:
    identity = summary["identity"]
    what = " on ".join(str(part) for part in (identity["model"], identity["engine"]) if part)
    return what or f"Run {run.path.name}"


def _checks(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What validity rests on: name, outcome, and what it is based on."""
    validity, generator = summary["validity"], summary["generator"]
    evidence = []
    if generator["cpu_share"] is not None:
        evidence.append(f"used {percent(generator['cpu_share'])} of one CPU core")
    if generator.get("wait_share") is not None:
        evidence.append(f"waited for a processor {percent(generator['wait_share'])} of the time")
    if generator.get("lateness_p99_s") is not None:
        evidence.append(f"99 % of the beats of its loop came within {duration(generator['lateness_p99_s'])}")
    if generator["send_lag_p99_s"] is not None and summary["identity"]["arrival"] != "closed":
        evidence.append(f"sent 99 % of the requests within {duration(generator['send_lag_p99_s'])} of their time")
    steady, _, why = str(validity["steadiness"]).partition(": ")
    return [
        ("Run", validity["status"], "went to its end" if validity["status"] == "complete" else "did not end by itself"),
        (
            "Load generator",
            str(validity["generator"] or "not known"),
            redacted(generator["reason"] or "; ".join(evidence)),
        ),
        ("System", steady, why or "; ".join(_trends(validity)) or "no trend in queue, TTFT or TPOT over the window"),
    ]


def _trends(validity: Mapping[str, Any]) -> list[str]:
    """The change of each signal over the window, and the smallest one that the run could have shown.

    A run in which only more than a doubling would have shown tells nothing about smaller ones: no interval then.
    """
    told: list[str] = []
    weak: list[str] = []
    for found in validity.get("trends") or []:
        if found["low"] is None or found["smallest_found"] is None:
            continue
        if found["smallest_found"] > 1.0:
            weak.append(f"{found['signal']} {_signed(found['smallest_found'])}")
            continue
        told.append(
            f"{found['signal']} changed by {_signed(found['low'])} to {_signed(found['high'])} "
            f"(a rise by {percent(found['smallest_found'])} would have shown)"
        )
    if weak:
        told.append(f"too short to show any but large rises: {', '.join(weak)}")
    return told


def _signed(share: float) -> str:
    return f"{share * 100:+,.0f} %"


def _cards(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The key figures: label, figure, unit, interval."""
    throughput, slo = summary["throughput"], summary["slo"]
    ttft, e2e = judged(summary, "ttft"), judged(summary, "e2e")
    cards = [
        _card("Requests", throughput["requests_per_s"], "per second"),
        _card("Output tokens", throughput["output_tokens_per_s"], "per second"),
        _latency_card("First token, median", summary, ttft, "p50"),
        _latency_card("First token, p99", summary, ttft, "p99"),
        _latency_card("Per token, median", summary, "tpot_s", "p50"),
        _latency_card("Whole answer, median", summary, e2e, "p50"),
    ]
    if slo:
        cards.append(_card("Met the SLO", slo["attainment"], "% of requests", 100.0))
        cards.append(_card("Goodput", slo["goodput_rps"], "per second"))
    if not summary["requests"]["due"]:
        return []
    return cards


def _latency_card(label: str, summary: Mapping[str, Any], column: str, figure: str) -> dict[str, str]:
    estimate = estimate_of(summary, column, figure)
    long = (value_of(estimate) or 0.0) >= 10.0
    card = _card(label, estimate, "s" if long else "ms", 1.0 if long else 1e3)
    if estimate is not None and clients_part(summary, column, figure) is not None:
        card["figure"] += "*"
    return card


def _card(label: str, estimate: Mapping[str, Any] | None, unit: str, scale: float = 1.0) -> dict[str, str]:
    value = value_of(estimate)
    missing = value is None
    return {
        "label": label,
        "figure": MISSING if value is None else number(value * scale),
        "unit": "" if missing else unit,
        "interval": "too few samples" if missing else interval(estimate, scale),
    }


def _facts(run: Run, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    identity, window, counts = summary["identity"], summary["window"], summary["requests"]
    facts = [("Engine that served", engine_line(summary))]
    if (agreement := agreement_line(summary)) is not None:
        facts.append(("Agreement", agreement))
    for engine, reason in identity["skipped_engines"]:
        facts.append((f"Skipped: {engine}", redacted(str(reason))))
    facts.append(("Model", str(identity["model"] or "not known")))
    if (workload := workload_line(summary)) is not None:
        facts.append(("Workload", workload))
    if (prompts := prompts_line(summary)) is not None:
        facts.append(("Prompts", prompts))
    facts.append(("Load", load_line(summary)))
    if window["duration_s"] is not None:
        facts.append(("Measured", f"{number(window['duration_s'])} s after {number(window['start_s'])} s of warm-up"))
    failed = counts["due"] - counts["ok"]
    facts.append(("Requests in the window", f"{counts['due']:,}: {counts['ok']:,} successful, {failed:,} failed"))
    facts.append(("Started", str(run.manifest.get("started") or "not known")))
    return facts


def _latency_figures(run: Run, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name in _FIGURES:
        metric = METRIC_BY_NAME[name]
        column = judged(summary, name) if name in ("ttft", "e2e") else metric.column
        entry = summary["latency"].get(column)
        if not entry:
            continue
        metric = next(metric for metric in METRICS if metric.column == column)
        values = samples_of(run, metric).values
        note = None
        if entry.get("merged_share"):
            note = f"{percent(entry['merged_share'])} of the gaps stand for several tokens that came in one chunk."
        svg = latency_figure(values, entry, name=f"figure-{name}", title=metric.title, sample=metric.sample)
        found.append(
            {
                "id": f"latency-{name}",
                "title": metric.title,
                "definition": metric.definition,
                "samples": plural(int(entry["samples"]), metric.sample),
                "note": note,
                "svg": Markup(svg),
            }
        )
    return found


def _slowest(run: Run) -> list[dict[str, Any]]:
    """The successful measured requests with the longest end-to-end latency, and where their time went."""
    measured = run.measured
    ok = measured[measured["status"] == "ok"]
    column = "e2e_from_intended_s" if ok["e2e_from_intended_s"].notna().any() else "e2e_s"
    slowest = ok[ok[column].notna()].nlargest(SLOWEST, column)
    longest = float(slowest[column].max()) if len(slowest) else 1.0
    rows = []
    for _, request in slowest.iterrows():
        total = float(request[column])
        lag = float(request["send_lag_s"]) if column == "e2e_from_intended_s" else 0.0
        first = 0.0 if pd.isna(request["ttft_s"]) else float(request["ttft_s"])
        queue, prefill = (_seconds(request[name]) for name in ("server_queue_ns", "server_prefill_ns"))
        told = queue is not None and prefill is not None
        between = max(0.0, first - (queue or 0.0) - (prefill or 0.0))
        decode = max(0.0, total - lag - first)
        phases = {"lag": lag, "queue": queue or 0.0, "prefill": prefill or 0.0, "between": between, "decode": decode}
        if not told:
            phases = {"lag": lag, "first-token": first, "decode": decode}
        rows.append(
            {
                "index": _count(request["index"]),
                "due": f"{request['due_s']:.2f}",
                "lag": milliseconds(lag) if column == "e2e_from_intended_s" else MISSING,
                "first": milliseconds(first),
                "queue": milliseconds(queue),
                "prefill": milliseconds(prefill),
                "decode": milliseconds(decode),
                "total": milliseconds(total),
                "prompt": _count(request["prompt_tokens"]),
                "output": _count(request["tokens"]),
                "told": told,
                "bars": [(name, f"{phase / max(longest, 1e-9) * 100:.1f}") for name, phase in phases.items()],
            }
        )
    return rows


def _seconds(value_ns: Any) -> float | None:
    return None if pd.isna(value_ns) else int(value_ns) / NS_PER_S


def _count(value: Any) -> str:
    return MISSING if pd.isna(value) else f"{int(value):,}"


def _failures(run: Run) -> list[tuple[str, str, str]]:
    """Failed requests of the window grouped by what happened, the most frequent first: status, message, count."""
    measured = run.measured
    failed = measured[measured["status"] != "ok"]
    counted = Counter(
        (str(status), redacted(str(text)))
        for status, text in zip(failed["status"], failed["error"].fillna("no message"), strict=True)
    )
    return [(status, text, f"{count:,}") for (status, text), count in counted.most_common(SLOWEST)]


def _environment(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is needed to judge and repeat the run: titled lists of name and value."""
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
