"""The outcome of a capacity study as the terminal shows it, and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from muai_lab.analysis.capacity_schema import (
    CapacityEstimate,
    CapacityStudy,
    LongProbes,
    ProbeSummary,
    RateBracket,
    StudySlo,
)
from muai_lab.analysis.configuration import redacted
from muai_lab.analysis.validity import SATURATED
from muai_lab.report.page import render_page
from muai_lab.report.sheet import Grid, Sheet
from muai_lab.report.svg import BLUE, GREEN, INK, MUTED, ORANGE, SHADE, inline_svg, new_figure, style
from muai_lab.report.wording import engine_text, interval
from muai_lab.wording import duration, milliseconds, number, percent, plural

_WIDTH = 9.2


def capacity_sheet(study: CapacityStudy) -> Sheet:
    """Return the study: capacity with its interval, then every probe by its rate."""
    engine = study.engine or {}
    facts = [
        ("SLO", _slo_text(study.slo)),
        ("engine", engine_text(*(engine.get(key) for key in ("name", "version", "device", "dtype")))),
        ("load", f"{study.workload}, {study.arrival} arrivals"),
    ]
    if study.capacity_rps is not None and study.capacity is not None:
        facts += _capacity_facts(study, study.capacity_rps)
    if study.bracket_rps.kept is not None:
        facts.append(("short probes", _bracket_text(study.bracket_rps)))
    notes = tuple(redacted(note) for note in (study.ended, study.no_interval) if note)
    return Sheet(
        _headline(study), study.complete and study.capacity_rps is not None, tuple(facts), (_probes_grid(study),), notes
    )


def _capacity_facts(study: CapacityStudy, capacity: CapacityEstimate) -> list[tuple[str, str]]:
    """The figure with its interval, the servers that it holds for, and the rates of the search."""
    made = study.interval
    value = f"{number(capacity.value)} requests/s"
    if capacity.low is None or made is None:
        facts = [("capacity", f"{value}, no interval")]
    else:
        facts = [("capacity", f"{value}, 95 % interval {interval(capacity)}"), ("holds for", _scope_text(made))]
    if made is not None:
        spans = (
            f"{plural(made.long_probes, 'long probe')} of {number(made.shortest_window_s)} s or more, the "
            f"state of queue and batch persists for about {duration(made.memory_s)}"
        )
        facts.append(("estimate", spans))
    return facts


def _bracket_text(bracket: RateBracket) -> str:
    met, missed = ("no rate tried" if rate is None else number(rate) for rate in (bracket.kept, bracket.lost))
    return f"met at {met}, not met at {missed} requests/s"


def _scope_text(made: LongProbes) -> str:
    """The server starts that an interval holds for."""
    starts = made.server_starts
    if starts >= made.long_probes:
        return f"starts of this server; each of the {starts} long probes had its own"
    these = "this server start" if starts == 1 else f"these {starts} server starts"
    remedy = "capacity.restarts=true starts one for each long probe"
    if not made.can_restart:
        remedy = "an endpoint is never restarted"
    return f"{these} only: another start may carry some percent more or less ({remedy})"


def _headline(study: CapacityStudy) -> str:
    """The result in one sentence."""
    partial = "" if study.complete else "PARTIAL: "
    engine = (study.engine or {}).get("name") or "the endpoint"
    capacity = study.capacity_rps
    if capacity is None:
        return f"{partial}no capacity: {_why_nothing(study)}"
    if capacity.value is None:
        lowest = min(probe.rate_rps for probe in study.probes)
        return f"{partial}{engine} does not meet the SLO, not even at {number(lowest)} requests/s"
    if not study.end_found:
        longest = max(probe.window_s for probe in study.probes if probe.rate_rps >= capacity.value)
        return (
            f"{partial}{engine} meets the SLO at {number(capacity.value)} requests/s, and its end was not "
            f"found (in windows of {number(longest)} s)"
        )
    return f"{partial}{engine} carries {number(capacity.value)} requests/s within the SLO ({_between(study, capacity)})"


def _between(study: CapacityStudy, capacity: CapacityEstimate) -> str:
    if capacity.low is None or study.interval is None:
        return "no interval"
    of_one = "" if study.interval.server_starts > 1 else ", of this server start"
    return f"{interval(capacity)}{of_one}"


def _why_nothing(study: CapacityStudy) -> str:
    probes = study.probes
    if not probes:
        return "nothing was measured"
    if study.bracket_rps.kept is not None:
        return "only short probes count, and short windows after an idle server flatter it"
    rates = sorted({number(probe.rate_rps) for probe in probes})
    return (
        f"the load generator was late in {plural(len(probes), 'probe')} at {', '.join(rates)} requests/s, and their "
        "misses may be its own; a lower arrival.rate, or load.processes on more cores, measures the server"
    )


def _slo_text(slo: StudySlo) -> str:
    """`TTFT <= 500 ms, TPOT <= 50 ms for 99 % of the requests`."""
    named = (("TTFT", slo.ttft), ("TPOT", slo.tpot), ("E2E", slo.e2e))
    bounds = ", ".join(f"{name} <= {bound_ms:g} ms" for name, bound_ms in named if bound_ms is not None)
    return f"{bounds} for {percent(slo.quantile)} of the requests"


def _probes_grid(study: CapacityStudy) -> Grid:
    """Every probe, by its rate."""
    rows = tuple(
        (
            number(probe.rate_rps),
            number(probe.offered_rps),
            f"{probe.due:,}",
            percent(probe.attainment),
            number(probe.goodput_rps),
            milliseconds(probe.ttft_p50_s),
            milliseconds(probe.tpot_p50_s),
            "long" if probe.edge else "short",
            number(probe.window_s),
            _verdict_text(probe),
            probe.directory,
        )
        for probe in sorted(study.probes, key=lambda probe: (probe.rate_rps, probe.number))
    )
    columns = (
        "asked/s", "due/s", "judged", "met the SLO", "goodput/s", "TTFT p50 ms", "TPOT p50 ms", "probe", "window s",
        "verdict", "run",
    )  # fmt: skip
    return Grid(f"{plural(len(rows), 'probe')}, by the rate asked for", columns, rows, "rrrrrrrlrll")


def _verdict_text(probe: ProbeSummary) -> str:
    """The verdict of the probe's run; for one with a late load generator, if the probe counts."""
    if not probe.counts:
        return f"{probe.verdict}, does not count"
    return f"{probe.verdict}, SLO met all the same" if probe.verdict == SATURATED else probe.verdict


def render_capacity(study: CapacityStudy, directory: Path) -> str:
    """Return the page as one HTML document; the probes' reports are linked relative to `directory`."""
    drawn = [probe for probe in study.probes if probe.attainment is not None]
    links = [
        (probe.directory, quote(f"{probe.directory}/report.html"), probe.stopped or probe.verdict)
        for probe in study.probes
        if (directory / probe.directory / "report.html").is_file()
    ]
    context: dict[str, Any] = {
        "kind": "capacity",
        "eyebrow": f"muai_lab, capacity study {directory.name}",
        "title": f"Capacity of {study.model} on {(study.engine or {}).get('name') or 'the endpoint'}",
        "sheet": capacity_sheet(study),
        "figure": Markup(_curve(study, drawn, name="curve")) if drawn else None,
        "links": links,
    }
    return render_page("capacity.html.j2", context)


def _curve(study: CapacityStudy, drawn: Sequence[ProbeSummary], *, name: str) -> str:
    """Attainment and goodput over the offered rate, with the SLO and the capacity."""
    rates = sorted(float(probe.rate_rps) for probe in drawn)
    quantile = study.slo.quantile
    goodputs = [(probe.due_rps, probe.goodput_rps, probe) for probe in drawn if probe.goodput_rps is not None]
    offered = sorted(due_rps for due_rps, _, _ in goodputs) or rates
    attainments = [(float(probe.rate_rps), (probe.attainment or 0.0) * 100, probe) for probe in drawn]
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 3.5)
        left, right = figure.subplots(1, 2)
        _rate_axis(left, rates, "requests per second asked for (log scale)")
        _rate_axis(right, offered, "requests per second that were due (log scale)")
        for axes in (left, right):
            _mark_capacity(axes, study.capacity_rps)
        left.axhline(quantile * 100, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
        left.annotate(
            f"SLO {percent(quantile)}", (0.99, quantile * 100), (0, -3), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", va="top", color=MUTED,
        )  # fmt: skip
        _dots(left, attainments, quantile)
        left.set_ylim(-3.0, 104.0)
        left.set_title("Requests that met the SLO, %", loc="left")
        _dots(right, goodputs, quantile)
        (line,) = right.plot(offered, offered, color=GREEN, linewidth=0.9, label="all that was due")
        right.set_yscale("log")
        _few_ticks(right.yaxis, offered)
        lowest = min([goodput for _, goodput, _ in goodputs if goodput > 0] + offered[:1])
        right.set_ylim(lowest * 0.7, offered[-1] * 1.4)
        right.set_title("Goodput, requests/s that met the SLO", loc="left")
        right.legend(handles=[line], loc="upper left")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        description = "; ".join(
            f"{number(one.rate_rps)} requests/s: {percent(one.attainment)} met the SLO, {_look(one, quantile)}"
            for one in sorted(drawn, key=lambda one: one.rate_rps)
        )
        return inline_svg(figure, name, "SLO attainment and goodput over the offered rate", description)


_LOOKS: dict[str, dict[str, Any]] = {
    "SLO met": {"color": BLUE, "marker": "o"},
    "SLO not met": {"color": ORANGE, "marker": "o"},
    "long probe, SLO met": {"color": BLUE, "marker": "D"},
    "long probe, SLO not met": {"color": ORANGE, "marker": "D"},
    "ended early: of the requests decided by then": {"color": ORANGE, "marker": "o", "markerfacecolor": "none"},
    "does not count: the load generator may have decided it": {"color": MUTED, "marker": "x"},
}
_MET, _MISSED, _LONG_MET, _LONG_MISSED, _EARLY, _UNCOUNTED = _LOOKS


def _look(probe: ProbeSummary, quantile: float) -> str:
    if not probe.counts:
        return _UNCOUNTED
    if probe.stopped:
        return _EARLY
    met = probe.attainment is not None and probe.attainment >= quantile
    if probe.edge:
        return _LONG_MET if met else _LONG_MISSED
    return _MET if met else _MISSED


def _dots(axes: Axes, points: Sequence[tuple[float, float, ProbeSummary]], quantile: float) -> None:
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


def _mark_capacity(axes: Axes, capacity: CapacityEstimate | None) -> None:
    if capacity is None or capacity.value is None:
        return
    if capacity.low is not None and capacity.high is not None:
        axes.axvspan(max(capacity.low, axes.get_xlim()[0]), capacity.high, color=SHADE, linewidth=0, zorder=-1)
    axes.axvline(capacity.value, color=INK, linewidth=0.9)
