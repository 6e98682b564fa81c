"""The runs of a sweep side by side, a row for each configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from muai_lab.analysis.change import NO_DIFFERENCE, NOT_TESTED
from muai_lab.analysis.comparison import compare
from muai_lab.analysis.configuration import redacted, short_names
from muai_lab.analysis.configurations import (
    CACHED,
    FIGURES,
    LATENCIES,
    Configuration,
    configurations,
    figures_of,
    same_rounds,
    sweep_noise,
)
from muai_lab.analysis.frames import Run
from muai_lab.analysis.machines import mixture
from muai_lab.analysis.noise_history import NO_HISTORY, NoiseHistory
from muai_lab.analysis.pairing import is_usable, stated_validity
from muai_lab.analysis.summary_schema import Summary
from muai_lab.analysis.sweep import summary_of
from muai_lab.analysis.validity import validity_line
from muai_lab.report.comparison_sheet import verdict_cell, verdict_text
from muai_lab.report.sheet import Grid, Sheet
from muai_lab.settings.schema import ENGINE_NAMES
from muai_lab.wording import MISSING, milliseconds, number, percent, plural, setting_text

_BASELINE = "baseline"
_NAMED = 3  # runs that a note names
_OTHER_LOAD = "not comparable: other workload"


def comparison_table(
    runs: Sequence[Run], *, include_invalid: bool = False, history: NoiseHistory = NO_HISTORY
) -> Sheet:
    """Return the settings that differ, the engine that served, and the key figures; means over repeats.

    Repeated configurations are compared with the first usable one, and the A/A noise is stated. One run each shows no
    difference, so nothing is compared then. The first line states the number of valid runs.

    Args:
        runs: The runs of the sweep.
        include_invalid: List the figures of invalid runs too, in a table of their own.
        history: The noise of earlier runs of the same kind.
    """
    return sweep_sheet(configurations(runs), include_invalid=include_invalid, history=history)


def sweep_sheet(
    found: Sequence[Configuration],
    *,
    include_invalid: bool = False,
    folders: bool = True,
    history: NoiseHistory = NO_HISTORY,
) -> Sheet:
    """Return `comparison_table` of grouped runs. folders: name the directory of each configuration."""
    runs = [run for one in found for run in one.group.runs]
    repeated = is_repeated(found)
    against = against_baseline(found, history) if repeated else {}
    facts = []
    if repeated and (noise := noise_line(found)):
        facts.append(("A/A noise", noise))
    valid = sum(one.valid for one in found)
    configurations_text = f"{plural(len(found), 'configuration')}, " if repeated else ""
    grids = [_configurations_grid(found, against, folders=folders)]
    invalid = invalid_grid(found)
    notes = _notes(found)
    if invalid is not None and include_invalid:
        grids.append(invalid)
    elif invalid is not None and folders:
        notes.append("the figures of invalid runs: python -m muai_lab compare DIRECTORY --include-invalid")
    return Sheet(
        f"{configurations_text}{plural(len(runs), 'run')}, {valid} valid",
        valid == len(runs),
        tuple(facts),
        tuple(grids),
        tuple(notes),
    )


def is_repeated(found: Sequence[Configuration]) -> bool:
    """True if some configuration was measured more than once."""
    return any(len(one.group.runs) > 1 for one in found)


def rounds_line(found: Sequence[Configuration]) -> str:
    """The rounds over which the figures of repeated configurations are means."""
    rounds = max((one.rounds for one in found), default=0)
    if not same_rounds(found):
        return (
            "means over the usable repeats of each configuration: no round is usable in all of them, so their rows are "
            "not comparable"
        )
    compared = max((len(one.compared) for one in found), default=0)
    if compared == rounds:
        return f"means over {plural(rounds, 'repeat')}"
    which = "the rounds in which every configuration is usable" if len(found) > 1 else "those that are usable"
    return f"means over {compared} of {plural(rounds, 'repeat')}: {which}"


def invalid_grid(found: Sequence[Configuration]) -> Grid | None:
    """The figures of invalid runs, which are in no mean, each with its verdict; None without any."""
    bad = [(one, run) for one in found for run in one.group.runs if not is_usable(run)]
    if not bad:
        return None
    figures = [figures_of(run) for _, run in bad]
    shown = [figure for figure in FIGURES if any(row[figure] is not None for row in figures)]
    rows = tuple(
        (run_name(one, run), stated_validity(run).verdict, *(_cell(figure, row[figure]) for figure in shown))
        for (one, run), row in zip(bad, figures, strict=True)
    )
    columns = ("run", "verdict", *(_heading(figure) for figure in shown))
    return Grid("NOT VALID: figures to look at, no part of any mean", columns, rows, "ll" + "r" * len(shown))


def run_name(one: Configuration, run: Run) -> str:
    """The run by its directory below that of the sweep: `batcher=off/repeat-1`, or `repeat-1` without a sweep."""
    above = run.path.parent.name
    return f"{above}/{run.path.name}" if one.settings and above == one.group.name else run.path.name


def _configurations_grid(found: Sequence[Configuration], against: Mapping[int, str], *, folders: bool) -> Grid:
    """A row for each configuration. against: see `against_baseline`."""
    repeated = is_repeated(found)
    settings = list(found[0].settings) if found else []
    numbered = not folders and len(found) > 1
    figures = [figure for figure in FIGURES if any(one.mean(figure) is not None for one in found)]
    cached = any(one.mean(CACHED) for one in found)
    columns = [
        *(["no."] if numbered else []),
        *(["run"] if folders else []),
        *short_names(settings).values(),
        "engine",
        "valid" if repeated else "verdict",
        *(_heading(figure) for figure in figures),
        *(["cached"] if cached else []),
        *(["against the baseline"] if against else []),
    ]
    align = ("r" if numbered else "") + "l" * (len(settings) + 2 + folders) + "r" * (len(figures) + cached)
    rows = []
    for one in found:
        summary = summary_of(one.group.runs[0])
        rows.append(
            (
                *([str(one.number)] if numbered else []),
                *([one.group.name] if folders else []),
                *(_applied(key, value, summary) for key, value in one.settings.items()),
                _engine(summary),
                f"{one.valid}/{one.rounds}" if repeated else stated_validity(one.group.runs[0]).verdict,
                *(_cell(figure, one.mean(figure)) for figure in figures),
                *([percent(one.mean(CACHED))] if cached else []),
                *([against[one.number]] if against else []),
            )
        )
    title = rounds_line(found) if repeated else "runs"
    return Grid(title, tuple(columns), tuple(rows), align + ("l" if against else ""))


def _heading(figure: str) -> str:
    return f"{figure} ms" if figure in LATENCIES else figure


def _cell(figure: str, value: float | None) -> str:
    return milliseconds(value) if figure in LATENCIES else number(value)


def against_baseline(found: Sequence[Configuration], history: NoiseHistory = NO_HISTORY) -> dict[int, str]:
    """Compare each configuration with the first that has a usable run; the result in short, by number.

    Empty if there is nothing to compare, or if the load itself was swept.
    """
    baseline = next((one for one in found if one.compared), None)
    if baseline is None or len(found) < 2:
        return {}
    verdicts = {one.number: _BASELINE if one is baseline else _compared(baseline, one, history) for one in found}
    comparable = [text for number, text in verdicts.items() if number != baseline.number]
    return {} if all(text == _OTHER_LOAD for text in comparable) else verdicts


def _compared(baseline: Configuration, one: Configuration, history: NoiseHistory) -> str:
    comparison = compare(baseline.group, one.group, history=history)
    if comparison.reasons:
        kind = comparison.pairing.obstacles[0].kind
        return f"not comparable: {'no valid run' if kind == 'invalid' else f'other {kind}'}"
    first = comparison.primary
    if first is not None and comparison.verdict == NO_DIFFERENCE:
        return f"{first.figure.title}: {verdict_cell(first)}"
    if comparison.verdict == NOT_TESTED:
        return "one run to compare: no verdict"
    return f"{comparison.verdict}: {verdict_text(comparison).partition(': ')[2]}"


def noise_line(found: Sequence[Configuration]) -> str:
    """The difference between runs of one configuration, for each figure; empty if the repeats do not show it."""
    noises = sweep_noise(found)
    differences = [f"{figure} ±{percent(noise.difference)}" for figure, noise in noises.items()]
    if not differences:
        return ""
    schedules = "" if all(noise.shared_schedules for noise in noises.values()) else " over different schedules"
    return (
        f"two runs of one configuration{schedules} differ by less than this in 19 of 20 cases: {', '.join(differences)}"
    )


def _notes(found: Sequence[Configuration]) -> list[str]:
    """Notes on the runs; a note that applies to several runs is listed once."""
    runs = [(run_name(one, run), run) for one in found for run in one.group.runs]
    concerned: dict[str, list[str]] = {}
    for name, run in runs:
        validity = stated_validity(run)
        if not validity.valid:
            concerned.setdefault(redacted(validity_line(validity)), []).append(name)
        for engine, reason in run.manifest.get("skipped_engines") or []:
            concerned.setdefault(f"skipped {engine}: {redacted(str(reason))}", []).append(name)
    mixed = mixture([run for _, run in runs])
    return ([mixed] if mixed else []) + [f"{_listed(names, len(runs))}: {text}" for text, names in concerned.items()]


def _listed(names: Sequence[str], of: int) -> str:
    """`all 30 runs`, `1-a, 2-b`, or `1-a, 2-b, 3-c and 4 more runs`."""
    if len(names) == of > 1:
        return f"all {of} runs"
    shown, more = names[:_NAMED], len(names) - _NAMED
    return ", ".join(shown) + (f" and {plural(more, 'more run')}" if more > 0 else "")


def _engine(summary: Summary) -> str:
    """The engine that served, with the dtype that it used."""
    identity = summary.identity
    return " ".join(part for part in (identity.engine, identity.dtype) if part) or MISSING


def _applied(key: str, value: Any, summary: Summary) -> str:
    """A setting; nothing for one of an engine that did not serve."""
    section, _, rest = key.removeprefix("optimization.").partition(".")
    foreign = key.startswith("optimization.") and rest and section in ENGINE_NAMES
    return MISSING if foreign and section != summary.identity.engine else setting_text(value)
