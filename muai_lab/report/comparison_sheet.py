"""A comparison as facts and tables, for the terminal and for its page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from muai_lab.analysis.change import BETTER, NO_DIFFERENCE, NOT_TESTED, WORSE, Difference
from muai_lab.analysis.comparison import Comparison
from muai_lab.analysis.configuration import differing, redacted, shown
from muai_lab.analysis.frames import Run, flatten
from muai_lab.analysis.judgement import NO_SUCCESS, SMALLEST_EFFECT, harms
from muai_lab.analysis.moderation import MOST_REPEATS, Prior
from muai_lab.analysis.pairing import PER_REPEAT, Group, is_usable
from muai_lab.analysis.regression import RegressionOutcome, relative_text, signed
from muai_lab.report.sheet import Grid, Sheet
from muai_lab.wording import MISSING, duration, milliseconds, number, percent, plural, setting_text

_PROVENANCE = ("engine", "versions", "git")


def comparison_sheet(comparison: Comparison, outcomes: Sequence[RegressionOutcome] = ()) -> Sheet:
    """Return the comparison. The first line is the verdict, or the conditions of `outcomes` that are broken."""
    facts = [(label, _side(group)) for label, group in (("A", comparison.a), ("B", comparison.b))]
    pairs = len(comparison.pairing.pairs)
    if pairs and not comparison.reasons:
        facts.append(("pairs", _pairs(comparison)))
        facts += _primary_fact(comparison)
        facts.append(("noise", noise_text(comparison)))
    grids = [_figures(comparison)] if comparison.differences and pairs else []
    if outcomes:
        grids.append(_conditions(outcomes))
    changed = differences_of_configuration(comparison)
    if changed:
        grids.append(Grid("what differs", ("", "A", "B"), tuple(changed), "lll"))
    notes = [f"{one.figure.title}: {one.reason}" for one in comparison.differences if one.reason and one.pairs]
    notes += [*_untested(comparison), *_missing(comparison), *_too_short(comparison)]
    notes += [redacted(note) for note in comparison.notes]
    if any(obstacle.kind == "invalid" for obstacle in comparison.pairing.obstacles) and not pairs:
        notes.append("--include-invalid shows the figures of invalid runs")
    broken = [outcome for outcome in outcomes if outcome.broken]
    good = not broken if outcomes else comparison.verdict in (BETTER, NO_DIFFERENCE, NOT_TESTED)
    good = good and (bool(outcomes) or not harms(comparison.judgement))
    return Sheet(verdict_text(comparison, outcomes), good, tuple(facts), tuple(grids), tuple(notes))


def verdict_text(comparison: Comparison, outcomes: Sequence[RegressionOutcome] = ()) -> str:
    """The comparison in one line."""
    if comparison.reasons:
        return redacted(f"A and B cannot be compared: {'; '.join(comparison.reasons)}")
    broken = [outcome for outcome in outcomes if outcome.broken]
    if broken:
        return f"REGRESSION: {'; '.join(outcome.because for outcome in broken)}"
    line = _sentence(comparison)
    return f"no regression; {line}" if outcomes else line


def _sentence(comparison: Comparison) -> str:
    if comparison.judgement.why == NO_SUCCESS:
        return f"B is worse than A: {NO_SUCCESS}"
    first = comparison.primary
    if first is None:
        return "A and B cannot be compared: no figure is known of both"
    if comparison.verdict == NOT_TESTED:
        return f"no verdict from one run each: {_change_text(first)} from A to B; {_advice(first)}"
    if comparison.verdict == NO_DIFFERENCE:
        change = f"no difference shown between A and B: {_change_text(first)}"
        return f"{change}; {_undecided(first)}"
    line = f"B is {comparison.verdict} than A: {_change_text(first)}"
    for verdict in (BETTER, WORSE):
        others = [_change_text(one) for one in comparison.differences if one.verdict == verdict and one is not first]
        joint = "also" if verdict == comparison.verdict else "but"
        line += f"; {joint} {verdict}: {', '.join(others)}" if others else ""
    return line


def _undecided(first: Difference) -> str:
    """The reason why the primary figure shows no difference, or the change that it would have shown."""
    return first.reason if first.reason else f"{_detectable(first)} or more would be found in 4 of 5 such comparisons"


def _change_text(one: Difference) -> str:
    return f"{one.figure.title} {relative_text(one)}".strip()


def _detectable(one: Difference) -> str:
    least = SMALLEST_EFFECT if one.figure.scale == "ratio" else one.figure.floor
    return signed(one, max(one.detectable or 0.0, least)).removeprefix("+")


def _advice(one: Difference) -> str:
    """The number of repeats that would decide a change of the size seen."""
    if one.figure.scale == "ratio" and abs(one.change.value or 0.0) < SMALLEST_EFFECT:
        return f"a change below {percent(SMALLEST_EFFECT)} counts as none"
    if one.repeats is None:
        return f"more than {MOST_REPEATS} repeats of each would be needed to decide a change of this size"
    return f"about {one.repeats} repeats of each would decide a change of this size (experiment.repeats={one.repeats})"


def _primary_fact(comparison: Comparison) -> list[tuple[str, str]]:
    first = comparison.primary
    if first is None or comparison.judgement.why == NO_SUCCESS:
        return []
    return [("primary figure", f"{first.figure.title} ({comparison.judgement.why}; --primary names another)")]


def noise_text(comparison: Comparison) -> str:
    """The source of the noise between runs of the primary figure."""
    first = comparison.primary
    prior = comparison.priors[first.figure.name] if first else next(iter(comparison.priors.values()))
    known = _prior_text(prior, share=first is not None and first.figure.scale == "share")
    if comparison.single:
        if prior.decides_alone:
            return f"between runs {known}; the interval holds it"
        return f"between runs not measured: one run each; to advise on repeats it is taken {known}"
    pairs = plural(len(comparison.pairing.pairs), "pair")
    if first is not None and first.noisier:
        return f"between runs as these {pairs} scatter; they were quieter before, {known}"
    return f"between runs as these {pairs} scatter, averaged with what is known before: {known}"


def _prior_text(prior: Prior, *, share: bool) -> str:
    size = f"{percent(prior.variance**0.5)}{' of the root of p (1 - p)' if share else ''}"
    worth = f"as {prior.freedom:.2g} degrees of freedom" if prior.freedom != 1.0 else "as 1 degree of freedom"
    match prior.source:
        case "declared":
            return f"as declared, {size} ({worth})"
        case "history":
            return f"as in {plural(prior.comparisons, 'earlier comparison')} on this machine, {size} ({worth})"
    return f"as usual, {size} ({worth}); no earlier comparison on this machine"


def _side(group: Group) -> str:
    engines = {
        " ".join(str(engine.get(key)) for key in ("name", "version", "dtype") if engine.get(key))
        for run in group.runs
        if (engine := run.manifest.get("engine"))
    }
    runs = f"{group.name}: {plural(len(group.runs), 'run')}"
    return f"{runs}, {' and '.join(sorted(engines))}" if engines else runs


def _pairs(comparison: Comparison) -> str:
    pairs = plural(len(comparison.pairing.pairs), "pair")
    how = "over the same schedules" if comparison.pairing.same_schedule else "over different schedules"
    return f"{pairs} of runs {how}"


def _figures(comparison: Comparison) -> Grid:
    first = comparison.primary
    ordered = sorted(comparison.differences, key=lambda one: one is not first)
    rows = []
    for one in ordered:
        if one.a is None and one.b is None:
            continue
        mark = " (primary)" if one is first and len(ordered) > 1 else ""
        rows.append(
            (
                one.figure.title + mark,
                _value(one, one.a),
                _value(one, one.b),
                _unit(one),
                relative_text(one) or MISSING,
                _interval(one),
                verdict_cell(one),
            )
        )
    sides = [_marked(label, [pair[side] for pair in comparison.pairing.pairs]) for side, label in enumerate("AB")]
    return Grid("figures", ("", *sides, "unit", "change", interval_name(comparison), "verdict"), tuple(rows), "lrrlrrl")


def verdict_cell(one: Difference) -> str:
    """The verdict; for "no difference shown" with the smallest change that would be found."""
    if one.verdict == NO_DIFFERENCE and one.reason is None and one.detectable is not None:
        return f"{NO_DIFFERENCE} (detectable: {_detectable(one)})"
    return one.verdict


def interval_name(comparison: Comparison) -> str:
    """The name of the intervals, by the noise that they include."""
    within = any(one.pairs == 1 and not one.between_runs for one in comparison.differences) and not comparison.reasons
    return "interval within the runs" if within else "95 % interval"


def _marked(label: str, runs: Sequence[Run]) -> str:
    """The heading of a side: `B`, or `B (1 of 3 invalid)` if its figures include invalid runs."""
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


def _conditions(outcomes: Sequence[RegressionOutcome]) -> Grid:
    rows = [
        (outcome.condition.text, "REGRESSION" if outcome.broken else "passed", outcome.because) for outcome in outcomes
    ]
    return Grid("conditions (--fail-on)", ("", "outcome", "seen"), tuple(rows), "lll")


def _untested(comparison: Comparison) -> list[str]:
    """The reason why figures have no verdict, and those among them that look worse."""
    first = comparison.primary
    untested = [one for one in comparison.differences if one.verdict == NOT_TESTED and one is not first]
    if first is None or not untested or comparison.single or comparison.judgement.why == NO_SUCCESS:
        return []
    notes = [f"other figures are tested only behind a decided primary figure; {first.figure.title} is not decided"]
    harmed = [one for one in harms(comparison.judgement) if one.verdict == NOT_TESTED]
    if harmed:
        listed = ", ".join(f"{_change_text(one)} ({_interval(one)})" for one in harmed)
        notes.append(f"looks worse, but is not tested: {listed}; --primary '{harmed[0].figure.name}' tests it")
    return notes


def _too_short(comparison: Comparison) -> list[str]:
    """Figures of single runs whose windows are too short for an interval, with the length that would do."""
    needing = sorted((one.needs_s, one.figure.title) for one in comparison.differences if one.needs_s is not None)
    if not needing or comparison.reasons:
        return []
    listed = ", ".join(f"{title} {duration(needs_s)}" for needs_s, title in needing)
    return [f"windows too short for an interval within the runs; at least needed: {listed}"]


def _missing(comparison: Comparison) -> list[str]:
    """Figures that neither side has, by reason."""
    by_reason: dict[str, list[str]] = {}
    for one in comparison.differences:
        if not one.pairs and one.reason and not comparison.reasons:
            by_reason.setdefault(one.reason, []).append(one.figure.title)
    return [f"{', '.join(titles)} not compared: {reason}" for reason, titles in by_reason.items()]


def differences_of_configuration(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return the settings, versions and engine facts in which A and B differ: name, value of A, value of B."""
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
