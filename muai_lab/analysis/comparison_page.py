"""The comparison as an HTML page: the verdict, every change with its interval, what differs, how to read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter

from muai_lab.analysis.comparison import BETTER, SMALLEST_EFFECT, WORSE, Comparison, Difference
from muai_lab.analysis.comparison_sheet import comparison_sheet
from muai_lab.analysis.page import render_page
from muai_lab.analysis.regression import Outcome, relative_text, signed
from muai_lab.analysis.svg import BLUE, MUTED, ORANGE, SHADE, inline_svg, new_figure, style
from muai_lab.analysis.wording import percent

_WIDTH = 9.2
_WIDEST = 0.5  # changes beyond this are drawn at the edge, with their number


def render_comparison(comparison: Comparison, outcomes: Sequence[Outcome] = ()) -> str:
    """The page as one HTML document."""
    sheet = comparison_sheet(comparison, outcomes)
    drawn = [one for one in comparison.differences if one.change.value is not None and one.change.low is not None]
    context: dict[str, Any] = {
        "kind": "comparison",
        "eyebrow": "muai_lab, comparison",
        "title": f"{comparison.b.name} against {comparison.a.name}",
        "sheet": sheet,
        "figure": Markup(forest_figure(drawn, name="changes")) if drawn else None,
        "smallest": percent(SMALLEST_EFFECT),
        "measured": comparison.noise_measured,
        "runs": [
            (label, [str(run.path) for run in group.runs])
            for label, group in (("A", comparison.a), ("B", comparison.b))
        ],
    }
    return render_page("comparison.html.j2", context)


def forest_figure(differences: Sequence[Difference], *, name: str) -> str:
    """Every change with its interval on one axis; right of the middle is better."""
    count = len(differences)
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 0.55 + 0.3 * count)
        axes = figure.subplots()
        gains = [(one.gain.value or 0.0, one.gain.low or 0.0, one.gain.high or 0.0) for one in differences]
        reach = max((abs(end) for gain in gains for end in gain), default=0.0)
        reach = min(max(reach * 1.15, 2.5 * SMALLEST_EFFECT), _WIDEST)
        axes.axvspan(-SMALLEST_EFFECT, SMALLEST_EFFECT, color=SHADE, linewidth=0, zorder=-1)
        axes.axvline(0.0, color=MUTED, linewidth=0.9)
        for row, (one, (value, low, high)) in enumerate(zip(differences, gains, strict=True)):
            colour = {BETTER: BLUE, WORSE: ORANGE}.get(one.verdict, MUTED)
            ends = [min(max(end, -reach), reach) for end in (low, value, high)]
            axes.plot((ends[0], ends[2]), (row, row), color=colour, linewidth=2.0, solid_capstyle="butt")
            axes.plot(ends[1], row, color=colour, marker="o", markersize=5.0)
            axes.annotate(
                relative_text(one), (1.0, row), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", annotation_clip=False,
            )  # fmt: skip
        axes.set_xlim(-reach, reach)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_yticks(range(count), [one.figure.title for one in differences])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:+.3g} %" if value else "0"))
        axes.set_xlabel("worse  ←  gain of B over A (percentage points for shares)  →  better")
        told = "; ".join(
            f"{one.figure.title} {relative_text(one)}, "
            f"{signed(one, one.change.low)} to {signed(one, one.change.high)}, {one.verdict}"
            for one in differences
        )
        return inline_svg(figure, name, "Change of every figure from A to B, with its 95 % interval", told)
