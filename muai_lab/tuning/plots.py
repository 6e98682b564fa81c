"""The plots of a tuning's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from muai_lab.report.svg import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SHADE, inline_svg, new_figure, style
from muai_lab.settings.catalogue import show
from muai_lab.tuning.confirmation import Confirmation
from muai_lab.tuning.objective import Objective
from muai_lab.tuning.search_space import Parameter, SearchSpace
from muai_lab.tuning.trials import TrialRecord, pareto_front
from muai_lab.wording import number

_WIDTH = 9.2
_RESAMPLES = 2000
_SLICES_PER_ROW = 3
# The curve of a random search needs points that were not chosen by earlier results.
FEWEST_RANDOM = 4

_MISSES = "misses a bound"
_NO_VALUE = "crashed"
_LOOKS: dict[str, tuple[str, str, str]] = {
    "measured": (BLUE, "o", "measured to its end"),
    _MISSES: (MUTED, "o", "the same, misses a bound"),
    "pruned": (PURPLE, "v", "pruned (value so far)"),
    _NO_VALUE: (ORANGE, "x", "did not serve (no value)"),
}


def history_figure(trials: Sequence[TrialRecord], objective: Objective, name: str) -> str:
    """Draw every trial in order, the best so far, and the expected result of random search at equal budget."""
    shown = [trial for trial in trials if trial.outcome in _LOOKS and trial.values is not None]
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 3.1)
        axes = figure.subplots()
        numbers = [trial.number for trial in shown]
        for outcome in _LOOKS:
            group = [trial for trial in shown if _look(trial) == outcome]
            _dots(axes, [trial.number for trial in group], [_value(trial) for trial in group], outcome)
        best = _best_so_far(shown, objective)
        axes.step(numbers, best, where="post", color=INK, linewidth=1.2, label="best so far")
        expected = random_reference(trials, objective, len(shown))
        if expected is not None:
            axes.plot(
                numbers, expected, color=MUTED, linewidth=1.1, linestyle=(0, (4, 2)),
                label="random search, expected best",
            )  # fmt: skip
        axes.set_xlabel("number of the trial")
        axes.set_title(f"{objective.title}, {objective.unit}", loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderpad=0.0, handlelength=1.4)
        described = (
            f"{len(shown)} trials in order with their {objective.title.lower()}; the best so far ends at "
            f"{number(next((value for value in reversed(best) if np.isfinite(value)), None))} {objective.unit}."
        )
        return inline_svg(figure, name, "History of the search", described)


def random_reference(trials: Sequence[TrialRecord], objective: Objective, length: int) -> list[float] | None:
    """Return the expected best after 1, 2, … random points, resampled from this study's own random points.

    A point that misses a bound, or does not serve, counts with the worst value, unless no trial keeps the bounds. A
    pruned one counts with its value so far. None is returned with fewer than `FEWEST_RANDOM` points.
    """
    known = [trial for trial in trials if trial.outcome in _LOOKS and trial.values is not None]
    points = [trial for trial in known if trial.kind == "random"]
    if len(points) < FEWEST_RANDOM or length < 1:
        return None
    bound = any(trial.feasible for trial in known)
    values = [_value(trial) if trial.feasible or not bound else objective.worst for trial in points]
    drawn = np.random.default_rng(0).choice(np.array(values), size=(_RESAMPLES, length))
    best = np.maximum.accumulate(drawn, axis=1) if objective.larger_is_better else np.minimum.accumulate(drawn, axis=1)
    expected: list[float] = best.mean(axis=0).tolist()
    return expected


def importance_figure(importance: dict[str, float], name: str) -> str:
    """Draw the importance of each key as bars."""
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 0.5 + 0.27 * len(importance))
        axes = figure.subplots()
        keys, shares = list(importance), list(importance.values())
        axes.barh(range(len(keys)), shares, color=BLUE, height=0.62)
        for row, share in enumerate(shares):
            axes.annotate(f"{share:.0%}", (share, row), (4, 0), textcoords="offset points", va="center", color=INK)
        axes.set_yticks(range(len(keys)), [_short(key) for key in keys])
        axes.invert_yaxis()
        axes.set_xlim(0.0, max(shares) * 1.1)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        described = ", ".join(f"{_short(key)} {share:.0%}" for key, share in importance.items())
        return inline_svg(figure, name, "Importance of each key", described)


def frontier_figure(trials: Sequence[TrialRecord], objectives: Sequence[Objective], name: str) -> str:
    """Draw two objectives against each other, with the Pareto front."""
    first, second = objectives[0], objectives[1]
    shown = [trial for trial in trials if trial.outcome == "measured" and trial.values is not None]
    front = pareto_front(trials, objectives)
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 3.2)
        axes = figure.subplots()
        kept = [trial for trial in shown if trial.feasible]
        missed = [trial for trial in shown if not trial.feasible]
        for group, colour, marker, label in (
            (missed, MUTED, "x", "misses a bound"),
            (kept, BLUE, "o", "keeps every bound"),
        ):
            axes.plot(
                [_value(trial) for trial in group], [_value(trial, 1) for trial in group], linestyle="none",
                marker=marker, markersize=4.5, color=colour, label=label,
            )  # fmt: skip
        axes.plot(
            [_value(trial) for trial in front], [_value(trial, 1) for trial in front], color=GREEN, linewidth=1.2,
            marker="o", markersize=5.5, label="Pareto front",
        )  # fmt: skip
        for trial in front:
            axes.annotate(
                str(trial.number), (_value(trial), _value(trial, 1)), (4, 4), textcoords="offset points", color=INK
            )
        axes.set_xlabel(f"{first.title}, {first.unit}")
        axes.set_title(f"{second.title}, {second.unit}", loc="left")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderpad=0.0, handlelength=1.4)
        described = "Pareto front: " + "; ".join(
            f"trial {trial.number}, {number(_value(trial))} and {number(_value(trial, 1))}" for trial in front
        )
        return inline_svg(figure, name, "Frontier of the objectives", described)


def slices_figure(trials: Sequence[TrialRecord], space: SearchSpace, objective: Objective, name: str) -> str:
    """Draw the objective at each value of each key."""
    shown = [trial for trial in trials if trial.outcome in _LOOKS and trial.values is not None]
    parameters = list(space)
    columns = min(len(parameters), _SLICES_PER_ROW)
    rows = -(-len(parameters) // columns)
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 1.9 * rows)
        grid = np.atleast_1d(figure.subplots(rows, columns, sharey=True, squeeze=False)).ravel()
        for axes, parameter in zip(grid, parameters, strict=False):
            _slice(axes, [trial for trial in shown if parameter.path in trial.point], parameter)
        for axes in grid[len(parameters) :]:
            axes.set_visible(False)
        for row in range(rows):
            grid[row * columns].set_ylabel(objective.unit)
        described = f"{objective.title} against each of {len(parameters)} keys, one panel a key."
        return inline_svg(figure, name, "Slices through the space", described)


def _slice(axes: Axes, trials: Sequence[TrialRecord], parameter: Parameter) -> None:
    if parameter.kind == "choice":
        words = [show(choice) for choice in parameter.choices]
        places = {word: place for place, word in enumerate(words)}
        axes.set_xticks(range(len(words)), [word.strip('"') for word in words])
        axes.set_xlim(-0.5, len(words) - 0.5)
    for outcome in _LOOKS:
        group = [trial for trial in trials if _look(trial) == outcome]
        if parameter.kind == "choice":
            at: list[float] = [places.get(show(trial.point[parameter.path]), -1) for trial in group]
        else:
            at = [float(trial.point[parameter.path] or 0) for trial in group]
        _dots(axes, at, [_value(trial) for trial in group], outcome)
    if parameter.log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(_short(parameter.path), loc="left")


def pairs_figure(confirmation: Confirmation, objective: Objective, name: str) -> str:
    """Draw each pair as a line from the present configuration to the winner, and the gains with their interval."""
    pairs = confirmation.pairs
    with mpl.rc_context(style()):
        figure = new_figure(_WIDTH, 2.9)
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.4))
        for pair in pairs:
            colour = BLUE if pair.gain > 0 else ORANGE
            left.plot((0, 1), (pair.present, pair.winner), color=colour, marker="o", markersize=4.0, linewidth=1.1)
        left.set_xticks((0, 1), ("present", "winner"))
        left.set_xlim(-0.3, 1.3)
        left.set_title(f"{objective.title} of each pair, {objective.unit}", loc="left")
        noise = confirmation.noise
        right.axhspan(-noise, noise, color=SHADE, linewidth=0, zorder=-1)
        right.axhline(0.0, color=MUTED, linewidth=0.9)
        right.plot(range(1, len(pairs) + 1), [pair.gain for pair in pairs], linestyle="none", marker="o", color=BLUE)
        at = len(pairs) + 1.2
        named = range(1, len(pairs) + 1, 1 + len(pairs) // 15)
        low, high = confirmation.low, confirmation.high
        if low is not None and high is not None:
            right.plot((at, at), (low, high), color=INK, linewidth=2.0)
        right.plot(at, confirmation.gain, color=INK, marker="D", markersize=5.0)
        right.set_xticks([*named, at], [*map(str, named), "mean"])
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:+.3g} %" if value else "0"))
        right.set_title("gain of each pair, and their mean with its 95 % interval (shaded: noise)", loc="left")
        interval = "given up early" if low is None or high is None else f"interval {low:+.1%} to {high:+.1%}"
        described = f"{len(pairs)} pairs; mean gain {confirmation.gain:+.1%}, {interval}, noise {noise:.1%}."
        return inline_svg(figure, name, "Confirmation, pair by pair", described)


def _dots(axes: Axes, x: Sequence[float], y: Sequence[float], outcome: str) -> None:
    colour, marker, label = _LOOKS[outcome]
    if outcome == _NO_VALUE and len(x):
        # Its stand-in for the sampler is no measurement: it would only stretch the axis.
        axes.plot(
            x, [0.03] * len(x), linestyle="none", marker=marker, markersize=4.5, color=colour, label=label,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    elif len(x):
        axes.plot(x, y, linestyle="none", marker=marker, markersize=4.5, color=colour, alpha=0.8, label=label)


def _look(trial: TrialRecord) -> str:
    return _MISSES if trial.outcome == "measured" and not trial.feasible else trial.outcome


def _best_so_far(trials: Sequence[TrialRecord], objective: Objective) -> list[float]:
    """The best measured value after each trial that keeps every bound, or of all if none ever does; NaN before."""
    best: list[float] = []
    bound = any(trial.outcome == "measured" and trial.feasible for trial in trials)
    for trial in trials:
        before = best[-1] if best else float("nan")
        counts = trial.outcome == "measured" and (trial.feasible or not bound)
        value = _value(trial) if counts else float("nan")
        both: Any = (before, value)
        best.append(float(np.fmax(*both) if objective.larger_is_better else np.fmin(*both)))
    return best


def _value(trial: TrialRecord, place: int = 0) -> float:
    assert trial.values is not None, "only trials with values are drawn"
    return trial.values[place]


def _short(path: str) -> str:
    return path.removeprefix("optimization.")
