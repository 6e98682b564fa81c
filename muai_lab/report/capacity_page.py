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
from muai_lab.analysis.estimates import value_of
from muai_lab.analysis.validity import SATURATED
from muai_lab.report.page import render_page
from muai_lab.report.sheet import Grid, Sheet
from muai_lab.report.svg import BLUE, GREEN, INK, MUTED, ORANGE, SHADE, inline_svg, new_figure, style
from muai_lab.report.wording import interval
from muai_lab.wording import duration, milliseconds, number, percent, plural

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
        facts += capacity_facts(document)
    notes = [redacted(note) for note in (document["ended"], document["no_interval"]) if note]
    return Sheet(
        headline(document), document["status"] == "complete", tuple(facts), (probes_grid(document),), tuple(notes)
    )


def capacity_facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figure with its interval, what that holds for, and the rates of the search."""
    capacity, made = document["capacity_rps"], document["interval"]
    value = f"{number(capacity['value'])} requests/s"
    if capacity["low"] is None:
        facts = [("capacity", f"{value}, no interval")]
    else:
        facts = [("capacity", f"{value}, 95 % interval {interval(capacity)}"), ("holds for", scope_text(made))]
    if made:
        spans = (
            f"{plural(made['long_probes'], 'long probe')} of {number(made['shortest_window_s'])} s or more, the "
            f"state of queue and batch persists for about {duration(made['memory_s'])}"
        )
        facts.append(("estimate", spans))
    kept, lost = ("no rate tried" if rate is None else f"{number(rate)}" for rate in document["bracket_rps"].values())
    return [*facts, ("short probes", f"kept at {kept}, not kept at {lost} requests/s")]


def scope_text(made: Mapping[str, Any]) -> str:
    """The server starts that an interval holds for."""
    starts = int(made["server_starts"])
    if starts >= made["long_probes"]:
        return f"starts of this server; each of the {starts} long probes had its own"
    these = "this server start" if starts == 1 else f"these {starts} server starts"
    remedy = "capacity.restarts=true starts one for each long probe"
    if not made["can_restart"]:
        remedy = "an endpoint is never restarted"
    return f"{these} only: another start may carry some percent more or less ({remedy})"


def headline(document: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    partial = "" if document["status"] == "complete" else "PARTIAL: "
    engine = (document["engine"] or {}).get("name") or "the endpoint"
    capacity = document["capacity_rps"]
    if capacity is None:
        return f"{partial}no capacity: {_why_nothing(document['probes'])}"
    if capacity["value"] is None:
        lowest = min(probe["rate_rps"] for probe in document["probes"])
        return f"{partial}{engine} does not keep the promise, not even at {number(lowest)} requests/s"
    if not document["end_found"]:
        longest = max(probe["window_s"] for probe in document["probes"] if probe["rate_rps"] >= capacity["value"])
        return (
            f"{partial}{engine} keeps the promise at {number(capacity['value'])} requests/s, and its end was not "
            f"found (in windows of {number(longest)} s)"
        )
    return f"{partial}{engine} carries {number(capacity['value'])} requests/s within the promise ({_between(document)})"


def _between(document: Mapping[str, Any]) -> str:
    capacity, made = document["capacity_rps"], document["interval"]
    if capacity["low"] is None:
        return "no interval"
    of_one = "" if made["server_starts"] > 1 else ", of this server start"
    return f"{interval(capacity)}{of_one}"


def _why_nothing(probes: Sequence[Mapping[str, Any]]) -> str:
    if not probes:
        return "nothing was measured"
    rates = sorted({number(probe["rate_rps"]) for probe in probes})
    return (
        f"the load generator was late in {plural(len(probes), 'probe')} at {', '.join(rates)} requests/s, and their "
        "misses may be its own; a lower arrival.rate, or load.processes on more cores, measures the server"
    )


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
                number(probe.get("offered_rps")),
                f"{probe['due']:,}",
                attainment,
                number(probe["goodput_rps"]),
                milliseconds(probe["ttft_p50_s"]),
                milliseconds(probe["tpot_p50_s"]),
                "long" if probe["edge"] else "short",
                number(probe["window_s"]),
                _verdict_text(probe),
                str(probe["directory"]),
            )
        )
    columns = (
        "asked/s", "due/s", "judged", "met the SLO", "goodput/s", "TTFT p50 ms", "TPOT p50 ms", "probe", "window s",
        "verdict", "run",
    )  # fmt: skip
    return Grid(f"{plural(len(rows), 'probe')}, by the rate asked for", columns, tuple(rows), "rrrrrrrlrll")


def _verdict_text(probe: Mapping[str, Any]) -> str:
    """The verdict of the probe's run, and why an invalid one counts, or does not."""
    if not probe["counts"]:
        return f"{probe['verdict']}, does not count"
    saturated = probe["verdict"] == SATURATED
    return f"{probe['verdict']}, kept all the same" if saturated else str(probe["verdict"])


def render_capacity(document: Mapping[str, Any], directory: Path) -> str:
    """The page as one HTML document; the probes' reports are linked relative to `directory`."""
    sheet = capacity_sheet(document)
    drawn = [probe for probe in document["probes"] if probe["attainment"] is not None]
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
    capacity, quantile = document["capacity_rps"], document["slo"]["quantile"]
    whole = [probe for probe in drawn if probe["goodput_rps"] is not None]
    offered = sorted(offered_rate(probe) for probe in whole) or rates
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 3.5)
        left, right = figure.subplots(1, 2)
        _rate_axis(left, rates, "requests per second asked for (log scale)")
        _rate_axis(right, offered, "requests per second that were due (log scale)")
        for axes in (left, right):
            _mark_capacity(axes, capacity)
        left.axhline(quantile * 100, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
        left.annotate(
            f"promised {percent(quantile)}", (0.99, quantile * 100), (0, -3), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", va="top", color=MUTED,
        )  # fmt: skip
        _dots(left, [(probe["rate_rps"], probe["attainment"] * 100, probe) for probe in drawn], quantile)
        left.set_ylim(-3.0, 104.0)
        left.set_title("Requests that met the SLO, %", loc="left")
        _dots(right, [(offered_rate(probe), probe["goodput_rps"], probe) for probe in whole], quantile)
        (line,) = right.plot(offered, offered, color=GREEN, linewidth=0.9, label="all that was due")
        right.set_yscale("log")
        _few_ticks(right.yaxis, offered)
        lowest = min([probe["goodput_rps"] for probe in whole if probe["goodput_rps"] > 0] + offered[:1])
        right.set_ylim(lowest * 0.7, offered[-1] * 1.4)
        right.set_title("Goodput, requests/s that met the SLO", loc="left")
        right.legend(handles=[line], loc="upper left")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        told = "; ".join(
            f"{number(one['rate_rps'])} requests/s: {percent(one['attainment'])} met the SLO, {_look(one, quantile)}"
            for one in sorted(drawn, key=lambda one: float(one["rate_rps"]))
        )
        return inline_svg(figure, name, "SLO attainment and goodput over the offered rate", told)


def offered_rate(probe: Mapping[str, Any]) -> float:
    """Requests that were due ÷ window: a drawn schedule has a few more or fewer than the rate asked for."""
    offered = probe.get("offered_rps")
    return float(probe["rate_rps"] if offered is None else offered)


_LOOKS: dict[str, dict[str, Any]] = {
    "kept": {"color": BLUE, "marker": "o"},
    "not kept": {"color": ORANGE, "marker": "o"},
    "long probe, kept": {"color": BLUE, "marker": "D"},
    "long probe, not kept": {"color": ORANGE, "marker": "D"},
    "ended early: of the requests decided by then": {"color": ORANGE, "marker": "o", "markerfacecolor": "none"},
    "does not count: the load generator was late": {"color": MUTED, "marker": "x"},
}
_KEPT, _LOST, _LONG_KEPT, _LONG_LOST, _EARLY, _UNCOUNTED = _LOOKS


def _look(probe: Mapping[str, Any], quantile: float) -> str:
    if not probe["counts"]:
        return _UNCOUNTED
    if probe["stopped"]:
        return _EARLY
    kept = probe["attainment"] >= quantile
    if probe["edge"]:
        return _LONG_KEPT if kept else _LONG_LOST
    return _KEPT if kept else _LOST


def _dots(axes: Axes, points: Sequence[tuple[float, float, Mapping[str, Any]]], quantile: float) -> None:
    for look, drawn_as in _LOOKS.items():
        group = [(x, y) for x, y, probe in points if _look(probe, quantile) == look]
        if group:
            axes.plot(*zip(*group, strict=True), linestyle="none", markersize=5.0, label=look, **drawn_as)


def _rate_axis(axes: Axes, rates: Sequence[float], label: str) -> None:
    axes.set_xscale("log")
    axes.set_xlim(rates[0] * 0.8, rates[-1] * 1.25)
    _few_ticks(axes.xaxis, rates)
    axes.set_xlabel(label)


def _few_ticks(axis: Axis, rates: Sequence[float]) -> None:
    """Ticks at as many of the rates as fit on a logarithmic axis."""
    shown: list[float] = []
    for rate in rates:
        if not shown or rate / shown[-1] > (rates[-1] / rates[0]) ** 0.11:
            shown.append(rate)
    axis.set_major_locator(FixedLocator(shown))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _mark_capacity(axes: Axes, capacity: Mapping[str, Any] | None) -> None:
    value = value_of(capacity)
    if capacity is None or value is None:
        return
    if capacity["low"] is not None and capacity["high"] is not None:
        axes.axvspan(max(capacity["low"], axes.get_xlim()[0]), capacity["high"], color=SHADE, linewidth=0, zorder=-1)
    axes.axvline(value, color=INK, linewidth=0.9)
