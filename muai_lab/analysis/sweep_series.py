"""The figure of a sweep over a number: latency over throughput, a line for each of the other settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from muai_lab.analysis.configuration import short_names
from muai_lab.analysis.configurations import Configuration
from muai_lab.analysis.svg import BLUE, GREEN, INK, ORANGE, PURPLE, inline_svg, new_figure, style
from muai_lab.analysis.wording import duration, number, setting_text

_WIDTH = 9.2
_LEAST_POINTS = 3
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
_MARKERS = ("o", "s", "^", "D")
_WIDE = 20.0  # ratio of largest to smallest value from which an axis is logarithmic


@dataclass(frozen=True, slots=True)
class Series:
    """Configurations that differ in one number only, in its order. name: what they share, against other series."""

    name: str
    points: tuple[tuple[float, Configuration], ...]


def series_of(drawn: Sequence[Configuration]) -> tuple[str, list[Series]] | None:
    """The short name of the number that was swept, and a series for each combination of the other settings.

    None where no number was swept, where it took fewer than three values, or where there are more than four series.
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
    """Latency over throughput as SVG, each point labelled by the swept number; None where there is no such series."""
    found = series_of(drawn)
    if found is None:
        return None
    swept, series = found
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 3.4)
        for axes, latency, title in zip(
            figure.subplots(1, 2),
            ("TTFT p50", "TPOT p50"),
            ("Median time to first token, ms", "Median time per output token, ms"),
            strict=True,
        ):
            heights = [height for index, one in enumerate(series) for height in _line(axes, one, latency, index)]
            _finish(axes, heights, title)
        if any(one.name for one in series):
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(series))
        told = "; ".join(
            f"{one.name or 'all'}, {swept} {value:g}: {number(point.mean('tokens/s'))} tokens/s, "
            f"TTFT {duration(point.mean('TTFT p50'))}, TPOT {duration(point.mean('TPOT p50'))}"
            for one in series
            for value, point in one.points
        )
        return inline_svg(figure, name, f"Latency over throughput; labels are {swept}", told)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _line(axes: Axes, series: Series, latency: str, index: int) -> list[float]:
    """Draw one series; its latencies in milliseconds."""
    colour, marker = _COLOURS[index], _MARKERS[index]
    points = [
        (one.mean("tokens/s") or 0.0, seconds * 1e3, value)
        for value, one in series.points
        if (seconds := one.mean(latency)) is not None
    ]
    axes.plot(
        [x for x, _, _ in points],
        [y for _, y, _ in points],
        color=colour,
        marker=marker,
        markersize=4.5,
        linewidth=1.1,
        label=series.name,
    )
    for x, y, value in points:
        axes.annotate(f"{value:g}", (x, y), (4, 4), textcoords="offset points", color=INK, fontsize=8)
    return [y for _, y, _ in points]


def _finish(axes: Axes, heights: Sequence[float], title: str) -> None:
    if heights and min(heights) > 0 and max(heights) / min(heights) > _WIDE:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0.0)
    axes.set_xlim(left=0.0)
    axes.margins(x=0.1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.set_title(title, loc="left")
    axes.set_xlabel("output tokens per second")
