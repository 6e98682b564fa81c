"""`report.html` of a sweep: the throughput of each configuration, and its latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from muai_lab.analysis.configuration import redacted
from muai_lab.analysis.configurations import Configuration, configurations, same_rounds
from muai_lab.analysis.frames import Run
from muai_lab.analysis.noise_history import NO_HISTORY, NoiseHistory
from muai_lab.analysis.pairing import stated_validity
from muai_lab.analysis.validity import validity_line
from muai_lab.report.labels import label_points
from muai_lab.report.page import render_page, write_page
from muai_lab.report.sheet import Sheet
from muai_lab.report.svg import BLUE, MUTED, inline_svg, new_figure, style
from muai_lab.report.sweep_series import series_figure
from muai_lab.report.sweep_table import invalid_grid, is_repeated, noise_line, rounds_line, sweep_sheet
from muai_lab.wording import duration, number, plural

_WIDTH = 9.2


@dataclass(frozen=True, slots=True)
class ListedRuns:
    """The runs of one configuration: (name, link to the report or None, outcome)."""

    number: int
    name: str
    runs: tuple[tuple[str, str | None, str], ...]


def write_sweep_report(runs: Sequence[Run], directory: Path, *, history: NoiseHistory = NO_HISTORY) -> Path:
    """Write the page into the sweep's directory and return its path. Raises RunError if it cannot be written."""
    return write_page(directory / "report.html", render_sweep_report(runs, directory, history=history))


def render_sweep_report(
    runs: Sequence[Run], directory: Path, *, name: str | None = None, history: NoiseHistory = NO_HISTORY
) -> str:
    """Return the page as one HTML document; the reports of the runs are linked relative to `directory`.

    name: of the sweep, if it is not that of the directory. history: equal runs of the past.
    """
    found = configurations(runs)
    sheet = sweep_sheet(found, folders=False, history=history)
    drawn = [one for one in found if one.drawn]
    context: dict[str, Any] = {
        "kind": "sweep",
        "eyebrow": f"muai_lab, sweep {name or directory.resolve().name}",
        "title": _title(found),
        "headline": _headline(found),
        "sheet": Sheet(sheet.verdict, sheet.good, notes=sheet.notes),
        "grids": sheet.grids,
        "invalid": invalid_grid(found),
        "noise": _noise(found),
        **_figure(drawn),
        "rounds": rounds_line(found) if is_repeated(found) else None,
        "not_drawn": ", ".join(str(one.number) for one in found if not one.drawn),
        "unsteady": any(not one.valid for one in drawn),
        "configurations": [_listed(one, directory) for one in found],
    }
    return render_page("sweep.html.j2", context)


def _listed(one: Configuration, directory: Path) -> ListedRuns:
    runs = tuple((run.path.name, _link(run, directory), _outcome(run)) for run in one.group.runs)
    return ListedRuns(one.number, one.name, runs)


def _figure(drawn: Sequence[Configuration]) -> dict[str, Any]:
    """Lines over the number that was swept, if there is one, else a point for each configuration."""
    lines = series_figure(drawn, name="series")
    points = frontier_figure(drawn, name="frontier") if lines is None and len(drawn) > 1 else None
    return {
        "series": None if lines is None else Markup(lines),
        "frontier": None if points is None else Markup(points),
    }


def _title(found: Sequence[Configuration]) -> str:
    swept = list(found[0].settings) if found else []
    if not swept:
        runs = sum(len(one.group.runs) for one in found)
        return "One run" if runs == 1 else f"{runs} runs of one configuration"
    keys = ", ".join(key.removeprefix("optimization.").removesuffix(".name") for key in swept[:3])
    return f"Sweep over {keys}{' and more' if len(swept) > 3 else ''}"


def _noise(found: Sequence[Configuration]) -> str:
    """The difference between runs by chance, or the reason why it is not known."""
    if noise := noise_line(found):
        return f"A/A noise: {noise}."
    if is_repeated(found):
        return "Too few repeats are usable to measure how much runs differ by chance."
    return (
        "One run each shows no difference between configurations: experiment.repeats=5 measures how much runs differ "
        "by chance."
    )


def _headline(found: Sequence[Configuration]) -> str:
    """The configurations with the highest throughput and with the lowest latency, in plain sentences."""
    drawn = [one for one in found if one.drawn]
    if not drawn:
        return "No run gave a result that can be used."
    if len(drawn) == 1:
        name = f"{drawn[0].name}: " if len(found) > 1 else ""
        repeats = f", the mean of {plural(len(drawn[0].compared), 'run')}" if is_repeated(found) else ""
        return f"{name}{_rate_text(drawn[0])} and a median first token after {_first_text(drawn[0])}{repeats}."
    if not same_rounds(drawn):
        return (
            "No configuration is preferred: there is no round in which all of them have a usable run, and "
            "different rounds are different loads."
        )
    fastest = max(drawn, key=lambda one: one.mean("tokens/s") or 0.0)
    quickest = min(drawn, key=lambda one: one.mean("TTFT p50") or float("inf"))
    sentence = (
        f"Most throughput: {fastest.name}, with {_rate_text(fastest)} and a median first token after "
        f"{_first_text(fastest)}."
    )
    if quickest is not fastest:
        sentence += f" Quickest first token: {quickest.name}, with a median of {_first_text(quickest)}"
        sentence += f" at {_rate_text(quickest)}."
    return sentence


def _rate_text(one: Configuration) -> str:
    return f"{number(one.mean('tokens/s'))} output tokens per second"


def _first_text(one: Configuration) -> str:
    return duration(one.mean("TTFT p50"))


def _outcome(run: Run) -> str:
    return redacted(validity_line(stated_validity(run)))


def _link(run: Run, directory: Path) -> str | None:
    report = run.path / "report.html"
    if not report.is_file() or not report.resolve().is_relative_to(directory.resolve()):
        return None
    return quote(report.resolve().relative_to(directory.resolve()).as_posix())


def frontier_figure(drawn: Sequence[Configuration], *, name: str) -> str:
    """Draw latency over throughput, a point for each configuration; a line joins those that no other beats in both."""
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 3.3)
        for axes, latency, title in zip(
            figure.subplots(1, 2),
            ("TTFT p50", "TPOT p50"),
            ("Median time to first token, ms", "Median time per output token, ms"),
            strict=True,
        ):
            _frontier(axes, [one for one in drawn if one.mean(latency) is not None], latency, title)
        description = "; ".join(
            f"{one.number}, {one.name}: {number(one.mean('tokens/s'))} tokens/s, "
            f"TTFT {duration(one.mean('TTFT p50'))}, TPOT {duration(one.mean('TPOT p50'))}"
            for one in drawn
        )
        return inline_svg(figure, name, "Latency over throughput of every configuration", description)


def _frontier(axes: Axes, drawn: Sequence[Configuration], latency: str, title: str) -> None:
    points = [(one.mean("tokens/s") or 0.0, (one.mean(latency) or 0.0) * 1e3, one) for one in drawn]
    best = [(x, y) for x, y, _ in points if not any((u >= x and v < y) or (u > x and v <= y) for u, v, _ in points)]
    axes.plot(*zip(*sorted(best), strict=True), color=BLUE, linewidth=1.0, zorder=1) if best else None
    for x, y, one in points:
        colour = BLUE if (x, y) in best else MUTED
        for low_high, drawn_as in ((one.range("tokens/s"), "x"), (one.range(latency), "y")):
            if low_high is None or low_high[0] == low_high[1]:
                continue
            if drawn_as == "x":
                axes.plot(low_high, (y, y), color=colour, linewidth=0.8, alpha=0.7)
            else:
                axes.plot((x, x), [end * 1e3 for end in low_high], color=colour, linewidth=0.8, alpha=0.7)
        face = colour if one.valid else "none"
        axes.plot(x, y, marker="o", color=colour, markerfacecolor=face, markersize=5.0, linestyle="none", zorder=2)
    spread = [y for _, y, _ in points]
    highest = [end[1] * 1e3 for _, _, one in points if (end := one.range(latency)) is not None]
    furthest = [end[1] for _, _, one in points if (end := one.range("tokens/s")) is not None]
    if spread and min(spread) > 0 and max(spread) / min(spread) > 20:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0.0, max(highest, default=1.0) * 1.15 or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(0.0, max(furthest, default=1.0) * 1.12 or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    label_points(axes, [(str(one.number), x, y) for x, y, one in points])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.set_title(title, loc="left")
    axes.set_xlabel("output tokens per second")
