"""The plot of a sweep over a number: latency over throughput, a line for each combination of the other settings.

If all points have the same throughput, as under an open load within the capacity, latency is drawn over the swept
number itself. If prompts came from a prefix cache, their share is drawn beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from muai_lab.analysis.configuration import short_names
from muai_lab.analysis.configurations import CACHED, Configuration, configurations
from muai_lab.analysis.frames import find_runs, load_run
from muai_lab.arrays import Floats
from muai_lab.errors import RunError
from muai_lab.report.labels import label_points
from muai_lab.report.svg import BLUE, GREEN, ORANGE, PURPLE, inline_svg, new_figure, style
from muai_lab.wording import duration, number, setting_text

_WIDTH = 9.2
_LEAST_POINTS = 3
_LEGEND_CHARACTERS = 110  # in one line below the figure
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
_MARKERS = ("o", "s", "^", "D")
_SAME_RATE = 1.2  # ratio of largest to smallest throughput below which the difference is noise
_WIDE = 20.0  # ratio of largest to smallest value from which an axis is logarithmic


@dataclass(frozen=True, slots=True)
class Series:
    """Configurations that differ in one number only, in its order. name: the settings that they share."""

    name: str
    points: tuple[tuple[float, Configuration], ...]


def series_of(drawn: Sequence[Configuration]) -> tuple[str, list[Series]] | None:
    """Return the short name of the swept number, and a series for each combination of the other settings.

    None if no number was swept, if it has fewer than three values, or if there are more than four series.
    """
    if not drawn:
        return None
    keys = list(drawn[0].settings)
    values = {key: {one.settings[key] for one in drawn if _is_number(one.settings[key])} for key in keys}
    swept = max(keys, key=lambda key: len(values[key]), default=None)
    if swept is None or len(values[swept]) < _LEAST_POINTS:
        return None
    names = short_names(keys)
    grouped: dict[str, list[tuple[float, Configuration]]] = {}
    for one in drawn:
        if not _is_number(one.settings[swept]):
            return None
        rest = ", ".join(f"{names[key]}={setting_text(one.settings[key])}" for key in keys if key != swept)
        grouped.setdefault(rest, []).append((float(one.settings[swept]), one))
    if len(grouped) > len(_COLOURS):
        return None
    ordered = [Series(name, tuple(sorted(points, key=lambda point: point[0]))) for name, points in grouped.items()]
    return names[swept], ordered


def series_figure(drawn: Sequence[Configuration], *, name: str) -> str | None:
    """Return latency over throughput as SVG, each point labelled by the swept number; None without a series."""
    found = series_of(drawn)
    if found is None:
        return None
    swept, series = found
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 3.4)
        _draw(figure, swept, series)
        description = "; ".join(
            f"{one.name or 'all'}, {swept} {value:g}: {number(point.mean('tokens/s'))} tokens/s, "
            f"TTFT {duration(point.mean('TTFT p50'))}, TPOT {duration(point.mean('TPOT p50'))}"
            for one in series
            for value, point in one.points
        )
        return inline_svg(figure, name, f"Latency over throughput; labels are {swept}", description)


def save_sweep_picture(sweep: str | Path, path: str | Path) -> Path:
    """Draw the plot of a sweep's directory into a file, PNG or SVG by its suffix; return its path.

    Raises RunError if no run is found or no number was swept.
    """
    path = Path(path)
    found = series_of([one for one in configurations([load_run(run) for run in find_runs(sweep)]) if one.drawn])
    if found is None:
        raise RunError(f"{sweep}: nothing to draw: a picture needs a swept number with at least {_LEAST_POINTS} values")
    with mpl.rc_context(style() | {"svg.fonttype": "path"}):
        figure = new_figure(_WIDTH, 3.4)
        _draw(figure, *found)
        figure.savefig(path, dpi=160, facecolor="white")
    return path


def _draw(figure: Figure, swept: str, series: Sequence[Series]) -> None:
    cached = any(one.mean(CACHED) for each in series for _, one in each.points)
    panels = list(figure.subplots(1, 3 if cached else 2))
    rates = [rate for each in series for _, one in each.points if (rate := one.mean("tokens/s")) is not None]
    alike = max(rates) < _SAME_RATE * min(rates)
    for axes, latency, title in zip(
        panels[:2],
        ("TTFT p50", "TPOT p50"),
        ("Median time to first token, ms", "Median time per output token, ms"),
        strict=True,
    ):
        heights = [
            height for index, one in enumerate(series) for height in _line(axes, one, latency, index, over_swept=alike)
        ]
        _finish(axes, heights, title)
        if alike:
            _over(axes, swept, series)
            continue
        axes.set_xlim(0.0, max(rates) * 1.12 or 1.0)
        axes.set_xlabel("output tokens per second")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        label_points(axes, [label for one in series for label in _labels(one, latency)])
    if cached:
        _cached(panels[2], swept, series)
    if any(one.name for one in series):
        lines, names = panels[0].get_legend_handles_labels()
        names = [_shortened(name) for name in names]
        columns = max(1, min(len(names), _LEGEND_CHARACTERS // max(map(len, names))))
        figure.legend(lines, names, loc="outside lower center", ncols=columns)


def _shortened(name: str) -> str:
    """Return a name for a legend, without its middle if it is too long for one line."""
    half = _LEGEND_CHARACTERS // 2 - 1
    return name if len(name) <= _LEGEND_CHARACTERS else f"{name[:half]} … {name[-half:]}"


def _cached(axes: Axes, swept: str, series: Sequence[Series]) -> None:
    """Share of the prompt tokens that came from the cache, over the swept number."""
    for index, one in enumerate(series):
        points = [(value, 100 * share) for value, point in one.points if (share := point.mean(CACHED)) is not None]
        axes.plot(*zip(*points, strict=True), color=_COLOURS[index], marker=_MARKERS[index], markersize=4.5, lw=1.1)
    _over(axes, swept, series)
    axes.set_ylim(0.0, 100.0)
    axes.set_title("Prompt tokens from the prefix cache, %", loc="left")


def _over(axes: Axes, swept: str, series: Sequence[Series]) -> None:
    """Make the x axis that of the swept number."""
    values = sorted({value for one in series for value, _ in one.points})
    wide = values[0] > 0 and values[-1] / values[0] > _WIDE
    if wide:
        axes.set_xscale("log", base=2)
    places = np.log(values) if wide else np.array(values)
    shown = _far_apart(values, places)
    axes.set_xticks(shown, [f"{value:g}" for value in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(swept)


def _far_apart(values: Sequence[float], places: Sequence[float] | Floats, share: float = 0.09) -> list[float]:
    """Return as many of the values as fit as names on an axis, the last among them.

    places: positions of the values on the axis, ascending. share: part of the axis that one name takes.
    """
    shown = [len(values) - 1]
    for index in reversed(range(len(values) - 1)):
        if places[shown[-1]] - places[index] >= share * (places[-1] - places[0]):
            shown.append(index)
    return [values[index] for index in reversed(shown)]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _line(axes: Axes, series: Series, latency: str, index: int, *, over_swept: bool) -> list[float]:
    """Draw one series, over its throughput or over the swept number; return its latencies in milliseconds."""
    colour, marker = _COLOURS[index], _MARKERS[index]
    points = [
        (value if over_swept else one.mean("tokens/s") or 0.0, seconds * 1e3, one.valid > 0)
        for value, one in series.points
        if (seconds := one.mean(latency)) is not None
    ]
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=colour, linewidth=1.1)
    for x, y, valid in points:
        axes.plot(
            x, y, linestyle="none", marker=marker, markersize=4.5, color=colour,
            markerfacecolor=colour if valid else "none",
        )  # fmt: skip
    axes.plot([], [], color=colour, marker=marker, markersize=4.5, linewidth=1.1, label=series.name)
    return [y for _, y, _ in points]


def _labels(series: Series, latency: str) -> list[tuple[str, float, float]]:
    return [
        (f"{value:g}", one.mean("tokens/s") or 0.0, seconds * 1e3)
        for value, one in series.points
        if (seconds := one.mean(latency)) is not None
    ]


def _finish(axes: Axes, heights: Sequence[float], title: str) -> None:
    if heights and min(heights) > 0 and max(heights) / min(heights) > _WIDE:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0.0, max(heights, default=1.0) * 1.15 or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.set_title(title, loc="left")
