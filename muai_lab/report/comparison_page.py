"""The comparison as an HTML page: the verdict, every change with its interval, the differences, the method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter

from muai_lab.analysis.change import BETTER, WORSE, Difference
from muai_lab.analysis.comparison import Comparison
from muai_lab.analysis.judgement import NO_SUCCESS, SMALLEST_EFFECT
from muai_lab.analysis.regression import RegressionOutcome, relative_text, signed
from muai_lab.report.comparison_sheet import comparison_sheet, interval_name, noise_text
from muai_lab.report.page import render_page
from muai_lab.report.svg import BLUE, MUTED, ORANGE, SHADE, inline_svg, new_figure, style
from muai_lab.wording import percent

_WIDTH = 9.2
_COLOURS = {BETTER: BLUE, WORSE: ORANGE}
_WIDEST = 0.5  # changes beyond this are drawn at the edge, with their number


def render_comparison(comparison: Comparison, outcomes: Sequence[RegressionOutcome] = ()) -> str:
    """Return the page as one HTML document."""
    sheet = comparison_sheet(comparison, outcomes)
    drawn = [one for one in comparison.differences if one.change.value is not None and one.change.low is not None]
    context: dict[str, Any] = {
        "kind": "comparison",
        "eyebrow": "muai_lab, comparison",
        "title": f"{comparison.b.name} against {comparison.a.name}",
        "sheet": sheet,
        "figure": Markup(forest_figure(drawn, name="changes")) if drawn else None,
        "smallest": percent(SMALLEST_EFFECT),
        "single": comparison.single,
        "between": any(one.between_runs for one in drawn),
        "interval": interval_name(comparison),
        "primary": comparison.primary if comparison.judgement.why != NO_SUCCESS else None,
        "why": comparison.judgement.why,
        "noise": noise_text(comparison) if comparison.pairing.pairs and not comparison.reasons else None,
        "runs": [
            (label, [str(run.path) for run in group.runs])
            for label, group in (("A", comparison.a), ("B", comparison.b))
        ],
    }
    return render_page("comparison.html.j2", context)


def forest_figure(differences: Sequence[Difference], *, name: str) -> str:
    """Every change from A to B with its interval on one axis, of the sign that the tables give it."""
    count = len(differences)
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 0.7 + 0.3 * count)
        axes = figure.subplots()
        changes = [(one.change.low or 0.0, one.change.value or 0.0, one.change.high or 0.0) for one in differences]
        reach = max((abs(end) for change in changes for end in change), default=0.0)
        reach = min(max(reach * 1.15, 2.5 * SMALLEST_EFFECT), _WIDEST)
        axes.axvspan(-SMALLEST_EFFECT, SMALLEST_EFFECT, color=SHADE, linewidth=0, zorder=-1)
        axes.axvline(0.0, color=MUTED, linewidth=0.9)
        for row, (one, (low, value, high)) in enumerate(zip(differences, changes, strict=True)):
            colour = _COLOURS.get(one.verdict, MUTED)
            axes.plot(
                np.clip((low, high), -reach, reach), (row, row), color=colour, linewidth=2.0, solid_capstyle="butt"
            )
            # A change beyond the axis is an arrow at its end; the number beside it is its size.
            marker = ">" if value > reach else "<" if value < -reach else "o"
            axes.plot(np.clip(value, -reach, reach), row, color=colour, marker=marker, markersize=5.0, clip_on=False)
            verdict = f" {one.verdict}" if one.verdict in _COLOURS else ""
            axes.annotate(
                f"{relative_text(one)}{verdict}", (1.0, row), (8, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", annotation_clip=False,
            )  # fmt: skip
        axes.set_xlim(-1.03 * reach, 1.03 * reach)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_yticks(range(count), [_with_direction(one) for one in differences])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:+.3g} %" if value else "0"))
        axes.set_xlabel("change from A to B (of shares: percentage points)")
        description = "; ".join(
            f"{one.figure.title} {relative_text(one)}, "
            f"{signed(one, one.change.low)} to {signed(one, one.change.high)}, {one.verdict}"
            for one in differences
        )
        return inline_svg(figure, name, "Change of every figure from A to B, with its 95 % interval", description)


def _with_direction(one: Difference) -> str:
    """`TTFT p50 (less is better)`."""
    return f"{one.figure.title} ({'more' if one.figure.better == 'higher' else 'less'} is better)"
