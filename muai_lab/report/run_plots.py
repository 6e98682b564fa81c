"""The plots of the report: distributions with their tails, and client and server on one time axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from muai_lab.analysis import server_series
from muai_lab.analysis.frames import Run
from muai_lab.analysis.metrics import judged_metric
from muai_lab.analysis.statistics import SAMPLES_BEYOND
from muai_lab.analysis.summary_schema import LatencySummary
from muai_lab.analysis.window import in_flight
from muai_lab.arrays import Floats
from muai_lab.report.svg import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SHADE, inline_svg, new_figure, style
from muai_lab.window import Window
from muai_lab.wording import number

WIDTH = 9.2  # inches; the page scales it to its column
_DOTS = 700
_CURVE_POINTS = 240
_BINS = 120
_CHARACTER, _BESIDE = 0.0235, 0.015  # width of a character in a histogram, and from a line to its name, of its width
_ROW = 0.13  # height of a row of names in a histogram, of its height
_WIDE = 30.0  # ratio of largest to middle value from which an axis is logarithmic
_TAIL = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999)


def latency_figure(values_s: Floats, summary: LatencySummary, *, name: str, title: str, sample: str) -> str:
    """Histogram, and percentiles on a log tail axis, of one latency metric.

    values_s: the samples in seconds. summary: their distribution. name: id in the page.
    """
    values = np.sort(values_s[np.isfinite(values_s)]) * 1e3
    marks = {key: one.value * 1e3 for key, one in summary.quantiles.items() if one is not None}
    with mpl.rc_context(style()):
        figure = new_figure(WIDTH, 2.3)
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
        _histogram(left, values, marks, sample)
        _percentiles(right, values, summary)
        listed = (
            ", ".join(f"{key} {number(value)} ms" for key, value in marks.items()) or "too few samples for quantiles"
        )
        description = (
            f"Histogram and percentile curve of {values.size} samples, from {number(values[0])} ms to "
            f"{number(values[-1])} ms: {listed}."
        )
        return inline_svg(figure, name, title, description)


def _histogram(axes: Axes, values: Floats, marks: Mapping[str, float], sample: str) -> None:
    wide = _is_wide(values)
    values = _positive(values) if wide else values
    low, high = float(values[0]), float(values[-1])
    if high <= low:
        low, high = low * 0.9, high * 1.1 or 1.0
    bins = int(np.clip(np.sqrt(values.size) * 1.5, 8, 60))
    edges = np.geomspace(low, high, bins + 1) if wide else np.linspace(low, high, bins + 1)
    counts, edges = np.histogram(values, edges)
    axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.75, linewidth=0)
    if wide:
        _log_axis(axes.set_xscale, axes.xaxis)
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("ms" + (" (log scale)" if wide else ""))
    axes.set_title(f"How often: {sample}s per bin", loc="left")
    axes.grid(visible=False, axis="x")
    mark_quantiles(axes, {key: marks[key] for key in ("p50", "p99") if key in marks}, float(counts.max()))


def mark_quantiles(axes: Axes, marks: Mapping[str, float], highest: float) -> None:
    """A line with name and value for each mark (at most two, ascending), in two rows if they do not fit side by side.

    highest: the top of what is drawn below.
    """
    axes.autoscale_view()  # else the limits are not yet those of what is drawn
    texts = [f"{key} {number(value)}" for key, value in marks.items()]
    widths = [len(text) * _CHARACTER + _BESIDE for text in texts]
    at = [_fraction(axes, value) for value in marks.values()]
    # Names stand between the lines if there is room, else on their outer sides, else in two rows.
    to_right = [True, False][: len(at)]
    rows = [0] * len(at)
    if len(at) == 2 and at[1] - at[0] <= sum(widths):
        outside = at[0] > widths[0] and 1.0 - at[1] > widths[1]
        to_right = [False, True] if outside else [at[0] < 0.5] * 2
        # The line that a name of the upper row would cross ends below that row.
        rows = [0, 0] if outside else [0, 1] if at[0] < 0.5 else [1, 0]
    elif len(at) == 1 and 1.0 - at[0] < widths[0]:
        to_right = [False]
    top = max(highest * (1.18 + 0.16 * max(rows, default=0)), 1.0)
    axes.set_ylim(0.0, top)
    for key, value, text, right, row in zip(marks, marks.values(), texts, to_right, rows, strict=True):
        end = 1.0 - _ROW * row
        axes.axvline(value, ymax=end, color=INK, linewidth=0.9, linestyle="-" if key == "p50" else (0, (4, 2)))
        axes.annotate(
            text, (value, end), (3 if right else -3, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="left" if right else "right", va="top",
        )  # fmt: skip


def _is_wide(values: Floats) -> bool:
    """True if sorted values spread so far above their middle that only a logarithmic axis shows both."""
    return bool(np.median(values) > 0 and values[-1] / np.median(values) > _WIDE)


def _positive(values: Floats) -> Floats:
    """Sorted values for a logarithmic axis: the lowest hundredth, which may be 0, is drawn at its upper end."""
    floor = float(np.quantile(values, 0.01))
    return np.maximum(values, floor if floor > 0 else float(values[values > 0][0]))


def _fraction(axes: Axes, value: float) -> float:
    """The position of a value on the x axis, 0 to 1."""
    x, _ = axes.transAxes.inverted().transform(axes.transData.transform((value, 0.0)))
    return float(x)


def _log_axis(set_scale: Any, axis: Any) -> None:
    set_scale("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def _percentiles(axes: Axes, values: Floats, summary: LatencySummary) -> None:
    count = values.size
    last = max(-np.log10(1.0 / count), 0.31) if count > 1 else 0.31
    at = np.linspace(0.0, last, _CURVE_POINTS)
    wide = _is_wide(values)
    values = _positive(values) if wide else values
    quantiles = np.quantile(values, np.clip(1.0 - 10.0**-at, 0.0, 1.0))
    backed = at <= -np.log10(min(SAMPLES_BEYOND / count, 1.0))
    axes.plot(at[backed], quantiles[backed], color=BLUE)
    axes.plot(at[~backed], quantiles[~backed], color=BLUE, linestyle=(0, (1, 1.5)))
    for name, estimate in summary.quantiles.items():
        if estimate is None:
            continue
        x, y = -np.log10(1.0 - float(name[1:]) / 100.0), estimate.value * 1e3
        if estimate.low is not None and estimate.high is not None:
            axes.plot([x, x], [estimate.low * 1e3, estimate.high * 1e3], color=ORANGE, linewidth=2.2, alpha=0.8)
        axes.plot([x], [y], marker="o", markersize=3.6, color=ORANGE)
    ticks = [quantile for quantile in _TAIL if -np.log10(1.0 - quantile) <= last + 0.05]
    axes.set_xticks([-np.log10(1.0 - quantile) for quantile in ticks])
    axes.set_xticklabels([f"p{quantile * 100:g}" for quantile in ticks])
    axes.set_xlim(0.0, last * 1.03)
    if wide:
        _log_axis(axes.set_yscale, axes.yaxis)
    else:
        axes.set_ylim(0.0, float(values[-1]) * 1.08 or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == 0 else f"{value:,.6g}"))
    axes.set_xlabel("percentile, tail stretched")
    axes.set_title("How bad: ms at each percentile", loc="left")


def timeline_figure(run: Run, *, name: str) -> str | None:
    """Client throughput, the server's batch and queue, and TTFT, on one time axis; None without requests."""
    requests, window = run.requests, run.window
    if window is None or requests["due_s"].dropna().empty:
        return None
    end = max(float(np.nanmax(requests[["due_s", "over_s"]].to_numpy())), window.drain_end_s, window.end_s)
    width = _bin_width(end)
    edges: Floats = np.arange(0.0, end + width, width, dtype=np.float64)
    running = server_series.series(run.server_metrics, server_series.RUNNING)
    waiting = server_series.series(run.server_metrics, server_series.WAITING)
    with mpl.rc_context(style()):
        figure = new_figure(WIDTH, 7.4)
        panels = list(figure.subplots(5, 1, sharex=True, height_ratios=(1.0, 1.0, 0.8, 0.8, 1.2)))
        _request_rates(panels[0], requests, edges)
        _token_rate(panels[1], run, edges)
        at = np.linspace(0.0, end, 400)
        panels[2].plot(at, in_flight(requests, at), color=MUTED, linewidth=0.9, label="due and not over (client)")
        _gauge(panels[2], running, "Requests in the system", GREEN, end, "running (server)")
        _legend(panels[2])
        _gauge(panels[3], waiting, "Requests waiting (server)", ORANGE, end)
        _first_tokens(panels[4], requests)
        for panel in panels:
            _shade(panel, window, end)
        panels[0].set_xlim(0.0, end)
        panels[-1].set_xlabel("seconds from the start of the load (shaded: warm-up and drain, not counted)")
        figure.align_ylabels()
        described = (
            "Five panels over the seconds of the run: requests per second due and completed, output tokens per second, "
            "sequences running in the server, requests waiting in it, and the time to first token of each request. "
            f"Measured from {number(window.start_s)} s to {number(window.end_s)} s."
        )
        return inline_svg(figure, name, "Timeline of the run", described)


def _bin_width(end_s: float) -> float:
    for width in (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0):
        if end_s / width <= _BINS:
            return width
    return end_s / _BINS


def _steps(axes: Axes, times: Floats, amounts: Floats | None, edges: Floats, **drawn: Any) -> None:
    times_ok = np.isfinite(times) if amounts is None else np.isfinite(times) & np.isfinite(amounts)
    weights = None if amounts is None else amounts[times_ok]
    totals, _ = np.histogram(times[times_ok], edges, weights=weights)
    axes.stairs(totals / np.diff(edges), edges, baseline=None, **drawn)


def _request_rates(axes: Axes, requests: pd.DataFrame, edges: Floats) -> None:
    ok = requests["status"] == "ok"
    _steps(axes, requests["due_s"].to_numpy(), None, edges, color=MUTED, linewidth=0.9, label="due")
    _steps(axes, requests.loc[ok, "last_token_s"].to_numpy(), None, edges, color=BLUE, linewidth=1.3, label="completed")
    if not ok.all():
        _steps(axes, requests.loc[~ok, "over_s"].to_numpy(), None, edges, color=ORANGE, linewidth=1.3, label="failed")
    axes.set_title("Requests per second (client)", loc="left")
    _from_zero(axes)
    _legend(axes)


def _token_rate(axes: Axes, run: Run, edges: Floats) -> None:
    chunks = run.chunks
    start_ns = run.window.load_start_ns if run.window else 0
    _steps(axes, (chunks.t_ns - start_ns) / 1e9, chunks.tokens, edges, color=PURPLE, linewidth=1.3)
    axes.set_title("Output tokens per second (client)", loc="left")
    _from_zero(axes)


def _gauge(
    axes: Axes, gauge: pd.Series | None, title: str, colour: str, end_s: float, label: str | None = None
) -> None:
    axes.set_title(title, loc="left")
    if gauge is None:
        what = label or "values of the server"
        axes.text(0.5, 0.5, f"{what}: not recorded", transform=axes.transAxes, ha="center", va="center", color=MUTED)
    else:
        seen = gauge[(gauge.index >= 0) & (gauge.index <= end_s)]
        every = max(1, len(seen) // 600)
        thinned = (
            seen if every == 1 else seen.groupby(np.arange(len(seen)) // every).max().set_axis(seen.index[::every])
        )
        axes.step(thinned.index.to_numpy(), thinned.to_numpy(), where="post", color=colour, linewidth=1.3, label=label)
    _from_zero(axes)


def _first_tokens(axes: Axes, requests: pd.DataFrame) -> None:
    metric = judged_metric(requests, "ttft")
    column = metric.column
    seen = requests[(requests["status"] == "ok") & requests[column].notna() & requests["due_s"].notna()]
    values = seen[column].to_numpy() * 1e3
    kept = _thinned(values)
    axes.plot(
        seen["due_s"].to_numpy()[kept], values[kept], linestyle="none", marker="o", markersize=2.0, markeredgewidth=0,
        color=BLUE, alpha=0.65, label="successful",
    )  # fmt: skip
    since = "due" if metric.open_loop_only else "sent"
    title = f"Time to first token of each request, ms since {since}"
    if kept.size < values.size:
        title += f" ({kept.size} of {values.size:,} drawn: the slowest and a sample)"
    axes.set_title(title, loc="left")
    if values.size and values.min() > 0 and _is_wide(np.sort(values)):
        _log_axis(axes.set_yscale, axes.yaxis)
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        _from_zero(axes)
    failed = requests[(requests["status"] != "ok") & requests["due_s"].notna()]["due_s"].to_numpy()
    if failed.size:
        shown = failed[:: max(1, failed.size // 200)]
        axes.plot(
            shown, np.full(shown.size, 0.03), linestyle="none", marker="x", markersize=4, color=ORANGE,
            transform=axes.get_xaxis_transform(), label="failed (no value)",
        )  # fmt: skip
        _legend(axes)


def _thinned(values: Floats) -> NDArray[np.int64]:
    """Positions of at most `_DOTS` values, in order: the slowest tenth of them, and an even sample of the rest."""
    if values.size <= _DOTS:
        return np.arange(values.size)
    slowest = np.argsort(values)[-_DOTS // 10 :]
    rest = np.linspace(0, values.size - 1, _DOTS - slowest.size).astype(np.int64)
    return np.union1d(slowest, rest)


def _from_zero(axes: Axes) -> None:
    top = axes.get_ylim()[1]
    axes.set_ylim(0.0, max(top * 1.05, 1.0))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, borderpad=0.0, handlelength=1.4, columnspacing=1.2
    )


def _shade(axes: Axes, window: Window, end_s: float) -> None:
    for start, stop in ((0.0, window.start_s), (window.end_s, end_s)):
        if stop > start:
            axes.axvspan(start, stop, color=SHADE, linewidth=0, zorder=-1)
