"""The runs of a sweep side by side, a row for each configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from muai_lab.analysis.comparison import NO_DIFFERENCE, compare
from muai_lab.analysis.comparison_sheet import verdict_text
from muai_lab.analysis.configuration import redacted, short_names
from muai_lab.analysis.configurations import CACHED, FIGURES, LATENCIES, Configuration, configurations, sweep_noise
from muai_lab.analysis.frames import Run
from muai_lab.analysis.machines import mixture
from muai_lab.analysis.pairing import stated_validity
from muai_lab.analysis.sheet import Grid, Sheet
from muai_lab.analysis.sweep import summary_of
from muai_lab.analysis.wording import MISSING, milliseconds, number, percent, plural, setting_text, validity_line
from muai_lab.settings.schema import ENGINE_NAMES

_BASELINE = "baseline"
_OTHER_LOAD = "not comparable: other workload"


def comparison_table(runs: Sequence[Run]) -> Sheet:
    """The sweep: the settings that differ, the engine that served, and the key figures; mean values over repeats.

    Where configurations were repeated, each is compared with the first, and the A/A noise is given; one run each shows
    no difference, so nothing is compared then. The first line says how many runs are valid.
    """
    return sweep_sheet(configurations(runs))


def sweep_sheet(found: Sequence[Configuration]) -> Sheet:
    """`comparison_table` of runs that are grouped already."""
    runs = [run for one in found for run in one.group.runs]
    repeated = any(len(one.group.runs) > 1 for one in found)
    settings = list(found[0].settings) if found else []
    names = short_names(settings)
    against = against_first(found) if repeated and len(found) > 1 else {}
    other_load = [one.number for one in found[1:] if against.get(one.number) == _OTHER_LOAD]
    if other_load and len(other_load) == len(found) - 1:
        against = {}  # the load itself is what was swept
    figures = [figure for figure in FIGURES if any(one.mean(figure) is not None for one in found)]
    columns = ["run", *names.values(), "engine", "valid" if repeated else "verdict"]
    align = "l" * len(columns)
    columns += [f"{figure} ms" if figure in LATENCIES else figure for figure in figures]
    align += "r" * len(figures)
    cached = any(one.mean(CACHED) for one in found)
    if cached:
        columns.append("cached")
        align += "r"
    if against:
        columns.append("against the first")
        align += "l"
    rows = []
    for one in found:
        summary = summary_of(one.group.runs[0])
        row = [
            one.group.name,
            *(_applied(key, value, summary) for key, value in one.settings.items()),
            _engine(summary),
            f"{one.valid}/{len(one.group.runs)}" if repeated else str(summary["validity"]["verdict"]),
            *(
                milliseconds(one.mean(figure)) if figure in LATENCIES else number(one.mean(figure))
                for figure in figures
            ),
            *([percent(one.mean(CACHED))] if cached else []),
        ]
        rows.append(tuple([*row, against[one.number]] if against else row))
    facts = []
    if repeated and (noise := noise_line(found)):
        facts.append(("A/A noise", noise))
    valid = sum(one.valid for one in found)
    configurations_told = f"{plural(len(found), 'configuration')}, " if repeated else ""
    return Sheet(
        f"{configurations_told}{plural(len(runs), 'run')}, {valid} valid",
        valid == len(runs),
        tuple(facts),
        (Grid("runs" if not repeated else "means over the repeats", tuple(columns), tuple(rows), align),),
        tuple(_notes(found, repeated)),
    )


def against_first(found: Sequence[Configuration]) -> dict[int, str]:
    """For each configuration what a comparison with the first says, in short."""
    told = {found[0].number: _BASELINE}
    for one in found[1:]:
        comparison = compare(found[0].group, one.group)
        if comparison.reasons:
            kind = comparison.pairing.obstacles[0].kind
            told[one.number] = f"not comparable: {'no valid run' if kind == 'invalid' else f'other {kind}'}"
        elif comparison.verdict == NO_DIFFERENCE:
            told[one.number] = NO_DIFFERENCE
        else:
            told[one.number] = f"{comparison.verdict}: {verdict_text(comparison).partition(': ')[2]}"
    return told


def noise_line(found: Sequence[Configuration]) -> str:
    """How much runs of one configuration differ, figure by figure; empty where the repeats do not tell."""
    noises = sweep_noise(found)
    told = [f"{figure} ±{percent(noise.difference)}" for figure, noise in noises.items()]
    if not told:
        return ""
    return f"two runs of one configuration differ by less than this in 19 of 20 cases: {', '.join(told)}"


def _notes(found: Sequence[Configuration], repeated: bool) -> list[str]:
    mixed = mixture([run for one in found for run in one.group.runs])
    notes = [mixed] if mixed else []
    for one in found:
        for run in one.group.runs:
            name = f"{one.group.name}/{run.path.name}" if repeated else run.path.name
            validity = stated_validity(run)
            if not validity["valid"]:
                notes.append(f"{name}: {redacted(validity_line(validity))}")
            for engine, reason in run.manifest.get("skipped_engines") or []:
                notes.append(f"{name}: skipped {engine}: {redacted(str(reason))}")
    return notes


def _engine(summary: Mapping[str, Any]) -> str:
    """The engine that really served, in the dtype that it really used."""
    identity = summary["identity"]
    return " ".join(str(part) for part in (identity["engine"], identity["dtype"]) if part) or MISSING


def _applied(key: str, value: Any, summary: Mapping[str, Any]) -> str:
    """A setting; one that belongs to an engine means nothing for a run that another engine served."""
    section, _, rest = key.removeprefix("optimization.").partition(".")
    foreign = key.startswith("optimization.") and rest and section in ENGINE_NAMES
    return MISSING if foreign and section != summary["identity"]["engine"] else setting_text(value)
