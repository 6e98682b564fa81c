"""Conditions on a comparison such as `p50 ttft +5%`, for CI.

    condition = figure change
    figure    = (p50 | p90 | p95 | p99 | mean) (ttft | tpot | itl | e2e)
              | requests | tokens | success | goodput | attainment
    change    = (+ | -) number unit          the worse direction: + for a latency, else -
    unit      = %                            of A's figure
              | ms | s                       of a latency
              | pp                           percentage points, of success and attainment

A condition is broken if B is worse than A by more than that, *and* the difference is significant: the size of a change
is no evidence alone. With several conditions the p-values are adjusted (Holm), so ten conditions raise no more false
alarms than one. They are a family of their own, since they are chosen in advance. The primary figure of the comparison
need not be decided.

Single runs are judged only if the noise between runs is known: from enough history of the machine, or declared. Else a
condition cannot be judged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from muai_lab.analysis.change import Difference
from muai_lab.analysis.comparison import Comparison
from muai_lab.analysis.judgement import NO_SUCCESS
from muai_lab.analysis.key_figures import FIGURES, NEEDS_SLO, QUANTILES, KeyFigure
from muai_lab.analysis.metrics import shown_in
from muai_lab.analysis.moderation import ENOUGH_HISTORY, SIGNIFICANCE, holm
from muai_lab.errors import MuaiError
from muai_lab.settings.nearest import did_you_mean, nearest
from muai_lab.wording import duration, number

_METRICS = ", ".join(metric.name for metric in shown_in("comparison"))
_FIGURE_FORMS = (
    f"FIGURE is {', '.join(QUANTILES)} or mean of {_METRICS}, or requests, tokens, success, goodput, attainment"
)
_FORMS = (
    f"write FIGURE CHANGE, such as 'p50 ttft +5%', 'p99 e2e +20ms', 'tokens -3%' or 'attainment -1pp'; {_FIGURE_FORMS}"
)
_CONDITION = re.compile(
    r"(?P<figure>[A-Za-z0-9. ]+?)\s*(?P<sign>[+-])\s*(?P<amount>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>\S*)"
)
_SECONDS = {"ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Condition:
    """A change that must not happen. amount: Relative for unit `%`, else in the figure's unit (seconds, a share)."""

    text: str
    figure: KeyFigure
    amount: float
    relative: bool


@dataclass(frozen=True, slots=True)
class RegressionOutcome:
    """The outcome of a condition. broken: True if the change happened. because: The evidence in words."""

    condition: Condition
    broken: bool
    because: str


def parse_condition(text: str) -> Condition:
    """Parse one condition. Raises MuaiError with the valid forms."""
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise MuaiError(f"--fail-on {text!r} cannot be read: {_FORMS}")
    figure = _figure(match["figure"], f"--fail-on {text!r}", _FORMS)
    bad = "+" if figure.better == "lower" else "-"
    if match["sign"] != bad:
        raise MuaiError(
            f"--fail-on {text!r}: {figure.name} is better when {figure.better}, so a regression is written "
            f"'{figure.name} {bad}{match['amount']}{match['unit']}'"
        )
    unit = match["unit"].lower()
    units = ("pp",) if figure.scale == "share" else ("%", *_SECONDS) if figure.metric else ("%",)
    if unit not in units:
        problem = f"the unit {match['unit']!r} is not one" if unit else "the unit is missing"
        example = " or ".join(f"'{figure.name} {bad}{match['amount']}{valid}'" for valid in units)
        raise MuaiError(f"--fail-on {text!r}: {problem}; write {example}")
    scale = 0.01 if unit in ("%", "pp") else _SECONDS[unit]
    return Condition(text.strip(), figure, float(match["amount"]) * scale, unit == "%")


def parse_figure(text: str) -> KeyFigure:
    """Parse the figure of `--primary`. Raises MuaiError with the valid forms."""
    return _figure(text, f"--primary {text!r}", _FIGURE_FORMS)


def _figure(written: str, where: str, forms: str) -> KeyFigure:
    words = written.lower().split()
    for name in (" ".join(words), " ".join(reversed(words))):
        if name in FIGURES:
            return FIGURES[name]
    hint = did_you_mean(nearest(" ".join(words), FIGURES))
    raise MuaiError(f"{where}: no such figure: {written.strip()!r}{hint}; {forms}")


def judge(conditions: Sequence[Condition], comparison: Comparison) -> list[RegressionOutcome]:
    """Judge each condition by the comparison, which must have its figure.

    A figure that only B lacks, because nothing succeeded there, breaks its condition.

    Raises:
        MuaiError: A condition cannot be judged: the figure is missing in A or in both, or the noise between single runs
            is not known.
    """
    differences = [comparison.of(condition.figure.name) for condition in conditions]
    adjusted = iter(holm([one.p for one in differences if one.p is not None]))
    return [
        _outcome(condition, found, next(adjusted)) if found.p is not None else _lost(condition, found, comparison)
        for condition, found in zip(conditions, differences, strict=True)
    ]


def _lost(condition: Condition, found: Difference, comparison: Comparison) -> RegressionOutcome:
    """The outcome of a figure without a p-value: broken if B lacks the figure, else an error."""
    if found.pairs and comparison.judgement.why != NO_SUCCESS:
        raise MuaiError(
            f"--fail-on {condition.text!r} cannot be judged from one run each: nothing tells how much equal runs "
            f"differ here. Repeat both (experiment.repeats=3); or declare it (--noise 3%); or compare repeats on this "
            f"machine first, whose history then judges single runs (from {ENOUGH_HISTORY:.0f} degrees of freedom on)"
        )
    if found.pairs:
        return RegressionOutcome(condition, found.looks_worse, change_text(found))
    if found.a is None or found.b is not None or not comparison.pairing.pairs:
        hint = " (run with slo=interactive, or another)" if condition.figure.name in NEEDS_SLO else ""
        raise MuaiError(f"--fail-on {condition.text!r} cannot be judged: {found.reason}{hint}")
    return RegressionOutcome(condition, True, f"cannot be shown any more: {found.reason}")


def _outcome(condition: Condition, found: Difference, p: float) -> RegressionOutcome:
    assert found.a is not None
    assert found.b is not None
    loss = found.a - found.b if found.figure.better == "higher" else found.b - found.a
    amount = loss
    if condition.relative:
        relative = found.change.value
        amount = float("inf") if relative is None and loss > 0 else abs(relative or 0.0) * (1 if loss > 0 else -1)
    evidence = change_text(found)
    if amount <= condition.amount:
        return RegressionOutcome(condition, False, evidence)
    if p > SIGNIFICANCE:
        return RegressionOutcome(condition, False, f"{evidence}, which chance can do as well (p = {p:.2g})")
    return RegressionOutcome(condition, True, evidence)


def change_text(found: Difference) -> str:
    """`TTFT p50 51.2 ms instead of 46.0 ms (+11.3 %)`."""
    written = [value_text(found.figure, value) for value in (found.b, found.a)]
    change = relative_text(found)
    return f"{found.figure.title} {written[0]} instead of {written[1]}" + (f" ({change})" if change else "")


def value_text(figure: KeyFigure, value: float | None) -> str:
    """Return the value of a figure with its unit."""
    if figure.metric is not None:
        return duration(value)
    if figure.scale == "share":
        return "-" if value is None else f"{value * 100:.4g} %"
    return f"{number(value)} {figure.unit}"


def relative_text(found: Difference) -> str:
    """Return the change as text: `+11.3 %`, or `-1.2 pp` for a share; empty without a change."""
    return signed(found, found.change.value)


def signed(found: Difference, change: float | None) -> str:
    """Return a change of this figure with its sign and unit."""
    if change is None:
        return ""
    digits = 1 if abs(change) < 0.995 else 0
    return f"{change * 100:+,.{digits}f} {'pp' if found.figure.scale == 'share' else '%'}"
