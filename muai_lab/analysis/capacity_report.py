"""The outcome of a capacity study as a terminal's sheet and as a page, from what `capacity.json` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from muai_lab.analysis.configuration import redacted
from muai_lab.analysis.page import render_page
from muai_lab.analysis.sheet import Grid, Sheet
from muai_lab.analysis.svg import BLUE, GREEN, INK, MUTED, ORANGE, SHADE, inline_svg, new_figure, style
from muai_lab.analysis.wording import MISSING, interval, milliseconds, number, percent, plural, value_of

_WIDTH = 9.2
_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E"}


def capacity_sheet(document: Mapping[str, Any]) -> Sheet:
    """The study: capacity with its interval, then every probe by its rate."""
    facts = [
        ("promise", promise_text(document["slo"])),
        ("engine", engine_text(document)),
        ("load", f"{document['workload']}, {document['arrival']} arrivals"),
    ]
    capacity = document["capacity_rps"]
    if capacity and capacity["value"] is not None:
        facts.append(("capacity", f"{number(capacity['value'])} requests/s, 95 % interval {interval_text(capacity)}"))
        bracket = document["bracket_rps"]
        kept, lost = (MISSING if rate is None else f"{number(rate)} requests/s" for rate in bracket.values())
        facts.append(("bracket", f"kept at {kept}, not kept at {lost}"))
    notes = []
    if document["ended"]:
        notes.append(redacted(f"{document['ended']}"))
    return Sheet(
        headline(document), document["status"] == "complete", tuple(facts), (probes_grid(document),), tuple(notes)
    )


def headline(document: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    partial = "" if document["status"] == "complete" else "PARTIAL: "
    engine = (document["engine"] or {}).get("name") or "the endpoint"
    capacity = document["capacity_rps"]
    if capacity is None:
        return f"{partial}nothing was measured"
    if capacity["value"] is None:
        lowest = min(probe["rate_rps"] for probe in document["probes"])
        return f"{partial}{engine} does not keep the promise, not even at {number(lowest)} requests/s"
    if capacity["high"] is None:
        return (
            f"{partial}{engine} keeps the promise at {number(capacity['value'])} requests/s, and its end was not found"
        )
    between = interval_text(capacity)
    return f"{partial}{engine} carries {number(capacity['value'])} requests/s within the promise ({between})"


def interval_text(capacity: Mapping[str, Any]) -> str:
    """`34.0 to 41.2`, or `34.0 and more`."""
    if capacity["high"] is None:
        return f"{number(capacity['low'])} and more"
    return interval(capacity)


def promise_text(slo: Mapping[str, Any]) -> str:
    """`TTFT <= 500 ms, TPOT <= 50 ms for 99 % of the requests`."""
    bounds = ", ".join(f"{_NAMES[name]} <= {slo[name]:g} ms" for name in _NAMES if slo.get(name) is not None)
    return f"{bounds} for {percent(slo['quantile'])} of the requests"


def engine_text(document: Mapping[str, Any]) -> str:
    """The engine that served, with version, device and dtype."""
    engine = document["engine"] or {}
    told = " ".join(str(engine[key]) for key in ("name", "version") if engine.get(key))
    where = ", ".join(str(engine[key]) for key in ("device", "dtype") if engine.get(key))
    return f"{told} ({where})" if told and where else told or "not known"


def probes_grid(document: Mapping[str, Any]) -> Grid:
    """Every probe, by its rate."""
    rows = []
    for probe in sorted(document["probes"], key=lambda probe: (probe["rate_rps"], probe["number"])):
        attainment = percent(probe["attainment"])
        rows.append(
            (
                number(probe["rate_rps"]),
                f"{probe['due']:,}",
                attainment,
                number(probe["goodput_rps"]),
                milliseconds(probe["ttft_p50_s"]),
                milliseconds(probe["tpot_p50_s"]),
                str(probe["verdict"]) if probe["counts"] else f"{probe['verdict']}, does not count",
                str(probe["directory"]),
            )
        )
    columns = ("requests/s", "judged", "met the SLO", "goodput/s", "TTFT p50 ms", "TPOT p50 ms", "verdict", "run")
    return Grid(f"{plural(len(rows), 'probe')}, by offered rate", columns, tuple(rows), "rrrrrrll")


def render_capacity(document: Mapping[str, Any], directory: Path) -> str:
    """The page as one HTML document; the probes' reports are linked relative to `directory`."""
    sheet = capacity_sheet(document)
    drawn = [probe for probe in document["probes"] if probe["attainment"] is not None and probe["counts"]]
    links = [
        (str(probe["directory"]), quote(f"{probe['directory']}/report.html"), probe["stopped"] or probe["verdict"])
        for probe in document["probes"]
        if (directory / probe["directory"] / "report.html").is_file()
    ]
    context: dict[str, Any] = {
        "kind": "capacity",
        "eyebrow": f"muai_lab, capacity study {directory.name}",
        "title": f"Capacity of {document['model']} on {(document['engine'] or {}).get('name') or 'the endpoint'}",
        "sheet": sheet,
        "figure": Markup(capacity_figure(document, drawn, name="curve")) if drawn else None,
        "links": links,
    }
    return render_page("capacity.html.j2", context)


def capacity_figure(document: Mapping[str, Any], drawn: Sequence[Mapping[str, Any]], *, name: str) -> str:
    """Attainment and goodput over the offered rate, with the promise and the capacity."""
    rates = sorted(probe["rate_rps"] for probe in drawn)
    capacity = document["capacity_rps"]
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 3.3)
        left, right = figure.subplots(1, 2)
        for axes in (left, right):
            _rate_axis(axes, rates)
            _mark_capacity(axes, capacity)
        quantile = document["slo"]["quantile"]
        left.axhline(quantile * 100, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
        left.annotate(
            f"promised {percent(quantile)}", (0.01, quantile * 100), (0, -3), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="top", color=MUTED,
        )  # fmt: skip
        for probe in drawn:
            kept = probe["attainment"] >= quantile
            left.plot(
                probe["rate_rps"], probe["attainment"] * 100, marker="o", markersize=5.0, linestyle="none",
                color=BLUE if kept else ORANGE, markerfacecolor="none" if probe["stopped"] else None,
            )  # fmt: skip
        left.set_ylim(-3.0, 104.0)
        left.set_title("Requests that met the SLO, %", loc="left")
        whole = [probe for probe in drawn if probe["goodput_rps"] is not None]
        for probe in whole:
            right.plot(
                probe["rate_rps"], probe["goodput_rps"], marker="o", markersize=5.0, linestyle="none",
                color=BLUE if probe["attainment"] >= quantile else ORANGE,
            )  # fmt: skip
        right.plot(rates, rates, color=GREEN, linewidth=0.9, label="all that was offered")
        right.set_yscale("log")
        _few_ticks(right.yaxis, rates)
        lowest = min([probe["goodput_rps"] for probe in whole if probe["goodput_rps"] > 0] + rates[:1])
        right.set_ylim(lowest * 0.7, rates[-1] * 1.4)
        right.set_title("Goodput, requests/s that met the SLO", loc="left")
        right.legend(loc="upper left")
        told = "; ".join(
            f"{number(probe['rate_rps'])} requests/s: {percent(probe['attainment'])} met the SLO"
            for probe in sorted(drawn, key=lambda probe: float(probe["rate_rps"]))
        )
        return inline_svg(figure, name, "SLO attainment and goodput over the offered rate", told)


def _rate_axis(axes: Axes, rates: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(rates[0] * 0.8, rates[-1] * 1.25)
    _few_ticks(axes.xaxis, rates)
    axes.set_xlabel("offered requests per second (log scale)")


def _few_ticks(axis: Axis, rates: Sequence[float]) -> None:
    """Ticks at as many of the rates as fit on a logarithmic axis."""
    shown: list[float] = []
    for rate in rates:
        if not shown or rate / shown[-1] > (rates[-1] / rates[0]) ** 0.11:
            shown.append(rate)
    axis.set_major_locator(FixedLocator(shown))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}"))


def _mark_capacity(axes: Axes, capacity: Mapping[str, Any] | None) -> None:
    value = value_of(capacity)
    if capacity is None or value is None:
        return
    if capacity["high"] is not None:
        axes.axvspan(max(capacity["low"], axes.get_xlim()[0]), capacity["high"], color=SHADE, linewidth=0, zorder=-1)
    axes.axvline(value, color=INK, linewidth=0.9)
