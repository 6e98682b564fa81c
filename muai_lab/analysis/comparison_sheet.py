"""A comparison as the terminal shows it, and as its page does: the same sheet of facts and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from muai_lab.analysis.comparison import BETTER, MIXED, NO_DIFFERENCE, NOT_COMPARABLE, WORSE, Comparison, Difference
from muai_lab.analysis.configuration import differing, redacted, shown
from muai_lab.analysis.frames import Run, flatten
from muai_lab.analysis.pairing import PER_REPEAT, Group, is_usable
from muai_lab.analysis.regression import Outcome, relative_text, signed
from muai_lab.analysis.sheet import Grid, Sheet
from muai_lab.analysis.wording import MISSING, milliseconds, number, percent, plural, setting_text

_SENTENCES = {
    WORSE: "B is worse than A",
    BETTER: "B is better than A",
    MIXED: "B is better than A in some figures and worse in others",
    NO_DIFFERENCE: "no difference shown between A and B",
    NOT_COMPARABLE: "A and B cannot be compared",
}
_PROVENANCE = ("engine", "versions", "git")


def comparison_sheet(comparison: Comparison, outcomes: Sequence[Outcome] = ()) -> Sheet:
    """The comparison. The first line is the verdict, or what was broken of the conditions in `outcomes`."""
    facts = [(label, _side(group)) for label, group in (("A", comparison.a), ("B", comparison.b))]
    pairs = len(comparison.pairing.pairs)
    if pairs and not comparison.reasons:
        facts.append(("pairs", _pairs(comparison)))
        facts.append(("noise", _noise(comparison)))
    grids = [_figures(comparison)] if comparison.differences and pairs else []
    if outcomes:
        grids.append(_conditions(outcomes))
    changed = differences_of_configuration(comparison)
    if changed:
        grids.append(Grid("what differs", ("", "A", "B"), tuple(changed), "lll"))
    notes = [f"{one.figure.title}: {one.reason}" for one in comparison.differences if one.reason and one.p is not None]
    notes += _missing(comparison)
    notes += [redacted(note) for note in comparison.notes]
    if any(obstacle.kind == "invalid" for obstacle in comparison.pairing.obstacles) and not pairs:
        notes.append("--include-invalid shows the figures of invalid runs")
    broken = [outcome for outcome in outcomes if outcome.broken]
    good = comparison.verdict in (BETTER, NO_DIFFERENCE) if not outcomes else not broken
    return Sheet(verdict_text(comparison, outcomes), good, tuple(facts), tuple(grids), tuple(notes))


def verdict_text(comparison: Comparison, outcomes: Sequence[Outcome] = ()) -> str:
    """The comparison in one line."""
    if comparison.reasons:
        return redacted(f"{_SENTENCES[NOT_COMPARABLE]}: {'; '.join(comparison.reasons)}")
    broken = [outcome for outcome in outcomes if outcome.broken]
    if broken:
        return f"REGRESSION: {'; '.join(outcome.because for outcome in broken)}"
    told = [
        f"{one.figure.title} {relative_text(one)}".strip()
        for verdict in (WORSE, BETTER)
        for one in comparison.differences
        if one.verdict == verdict
    ]
    line = _SENTENCES[comparison.verdict]
    line += f": {', '.join(told)}" if told else ""
    return f"no regression; {line}" if outcomes else line


def _side(group: Group) -> str:
    engines = {
        " ".join(str(engine.get(key)) for key in ("name", "version", "dtype") if engine.get(key))
        for run in group.runs
        if (engine := run.manifest.get("engine"))
    }
    told = f"{group.name}: {plural(len(group.runs), 'run')}"
    return f"{told}, {' and '.join(sorted(engines))}" if engines else told


def _pairs(comparison: Comparison) -> str:
    pairs = plural(len(comparison.pairing.pairs), "pair")
    how = "over the same schedules" if comparison.pairing.same_schedule else "over different schedules"
    return f"{pairs} of runs {how}"


def _noise(comparison: Comparison) -> str:
    if comparison.noise_measured:
        return "between runs as measured, from the spread of the pairs"
    return (
        f"between runs assumed to be {percent(comparison.assumed_noise)}: too few pairs to measure it "
        "(experiment.repeats=5 would)"
    )


def _figures(comparison: Comparison) -> Grid:
    rows = []
    for one in comparison.differences:
        if one.a is None and one.b is None:
            continue
        rows.append(
            (
                one.figure.title,
                _value(one, one.a),
                _value(one, one.b),
                _unit(one),
                relative_text(one) or MISSING,
                _interval(one),
                one.verdict,
            )
        )
    sides = [_marked(label, [pair[side] for pair in comparison.pairing.pairs]) for side, label in enumerate("AB")]
    return Grid("figures", ("", *sides, "unit", "change", "95 % interval", "verdict"), tuple(rows), "lrrlrrl")


def _marked(label: str, runs: Sequence[Run]) -> str:
    """The heading of a side: `B`, or `B (1 of 3 invalid)` where invalid runs are among those of its figures."""
    invalid = sum(not is_usable(run) for run in runs)
    if not invalid:
        return label
    return f"{label} (invalid)" if invalid == len(runs) else f"{label} ({invalid} of {len(runs)} invalid)"


def _value(one: Difference, value: float | None) -> str:
    if one.figure.metric is not None:
        return milliseconds(value)
    if one.figure.scale == "share":
        return MISSING if value is None else f"{value * 100:.4g}"
    return number(value)


def _unit(one: Difference) -> str:
    if one.figure.metric is not None:
        return "ms"
    return "%" if one.figure.scale == "share" else one.figure.unit


def _interval(one: Difference) -> str:
    if one.change.low is None or one.change.high is None:
        return MISSING
    low, high = (signed(one, end) for end in (one.change.low, one.change.high))
    return f"{low.rpartition(' ')[0]} to {high}"


def _conditions(outcomes: Sequence[Outcome]) -> Grid:
    rows = [
        (outcome.condition.text, "REGRESSION" if outcome.broken else "passed", outcome.because) for outcome in outcomes
    ]
    return Grid("conditions (--fail-on)", ("", "outcome", "seen"), tuple(rows), "lll")


def _missing(comparison: Comparison) -> list[str]:
    """Figures that both lack, together by reason; too few samples for one is no news by itself."""
    by_reason: dict[str, list[str]] = {}
    for one in comparison.differences:
        if one.p is None and one.reason and not comparison.reasons:
            by_reason.setdefault(one.reason, []).append(one.figure.title)
    return [f"{', '.join(titles)} not compared: {reason}" for reason, titles in by_reason.items()]


def differences_of_configuration(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Settings, then engine, versions and source revision, in which A and B differ: name, A's value, B's value."""
    first = comparison.a.runs[0], comparison.b.runs[0]
    rows = [
        (key, setting_text(values[0]), setting_text(values[1]))
        for key, values in differing(first).items()
        if key not in PER_REPEAT
    ]
    flat = [flatten({section: run.manifest.get(section) or {} for section in _PROVENANCE}) for run in first]
    for key in dict.fromkeys([*flat[0], *flat[1]]):
        values = [flat[side].get(key) for side in (0, 1)]
        if values[0] != values[1]:
            rows.append((key, _written(key, values[0]), _written(key, values[1])))
    return rows


def _written(key: str, value: Any) -> str:
    value = shown(key, value)
    return MISSING if value is None or value == {} else setting_text(value)
