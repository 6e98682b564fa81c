"""Labels of points in a plot, without overlap and inside the plot. Labels without room are left out."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from muai_lab.report.svg import INK

_SIZE = 8.0  # points
_CHARACTER = 0.66  # mean width of a character, in font sizes
_GAP = 4.0  # points between a point and its label
_DOT = 3.0  # half of the width of a point's marker

_Box = tuple[float, float, float, float]  # left, bottom, right, top in points


def label_points(axes: Axes, labels: Sequence[tuple[str, float, float]]) -> list[str]:
    """Write each label beside its point, on a side with room; return those that were left out.

    labels: (text, x, y) in data coordinates. The limits and scales of the axes must be set already.
    """
    scale = 72.0 / axes.figure.dpi
    frame = axes.get_window_extent()
    inside = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    at = [tuple(float(end) * scale for end in axes.transData.transform((x, y))) for _, x, y in labels]
    taken: list[_Box] = [(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in at]
    left_out = []
    for (text, x, y), (left, bottom) in zip(labels, at, strict=True):
        width, height = len(text) * _SIZE * _CHARACTER, _SIZE
        for dx, dy in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            start = left + _GAP if dx > 0 else left - _GAP - width
            base = bottom + _GAP if dy > 0 else bottom - _GAP - height
            box = (start, base, start + width, base + height)
            if _within(box, inside) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axes.annotate(
                    text, (x, y), (dx * _GAP, dy * _GAP), textcoords="offset points", color=INK, fontsize=_SIZE,
                    ha="left" if dx > 0 else "right", va="bottom" if dy > 0 else "top",
                )  # fmt: skip
                break
        else:
            left_out.append(text)
    return left_out


def _within(box: _Box, frame: _Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
