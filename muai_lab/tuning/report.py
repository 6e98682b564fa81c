"""`report.html` of a tuning: the result, the evidence for it, and the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from muai_lab.analysis.configuration import redacted
from muai_lab.report.page import render_page, write_page
from muai_lab.report.sheet import Grid
from muai_lab.settings.catalogue import show
from muai_lab.settings.lab import LabSettings
from muai_lab.tuning.block_result import attainment
from muai_lab.tuning.header import not_examined, statements
from muai_lab.tuning.importance import importance_of
from muai_lab.tuning.objective import SLO_VIOLATION, Objective, missed, objectives_of
from muai_lab.tuning.plots import (
    FEWEST_RANDOM,
    frontier_figure,
    history_figure,
    importance_figure,
    pairs_figure,
    slices_figure,
)
from muai_lab.tuning.problem import TuningProblem
from muai_lab.tuning.result import TuningResult
from muai_lab.tuning.search_space import Point, value_at
from muai_lab.tuning.study import TuningStudy
from muai_lab.tuning.trials import OUTCOMES, TOOK_TIME, TrialRecord, pareto_front, tally
from muai_lab.wording import duration, number, percent, plural

REPORT = "report.html"
_REASON_CHARACTERS = 300

Searches = Mapping[str, TuningStudy]
"""The study of each engine."""


def write_report(directory: Path, settings: LabSettings, result: TuningResult, searches: Searches) -> Path:
    """Write the page into the study's directory. Raises RunError when it cannot be written."""
    return write_page(directory / REPORT, render_tuning(settings, result, searches))


def render_tuning(settings: LabSettings, result: TuningResult, searches: Searches) -> str:
    """Return the page as one HTML document."""
    objective = objectives_of(settings)[0]
    confirmation = result.confirmation
    context: dict[str, Any] = {
        "kind": "tuning",
        "eyebrow": f"muai_lab, tuning {result.study}",
        "title": f"{settings.model.name}, {settings.workload.name}: {objective.title.lower()}",
        "headline": _headline(result, objective),
        "good": result.verdict == "confirmed",
        "verdict": redacted(f"{result.verdict}: {result.reason}"),
        "warnings": [] if result.missed is None else [result.missed],
        "facts": [*statements(result).items(), *result.facts.items(), ("not examined", not_examined(result))],
        "noise": _noise(result),
        "changes": _changes_grid(settings, result),
        "pairs": None if confirmation is None else Markup(pairs_figure(confirmation, objective, "pairs")),
        "engines": _engines_grid(result, objective),
        "searches": [
            _search(engine, study, f"engine-{place}") for place, (engine, study) in enumerate(searches.items())
        ],
        "fewest_random": FEWEST_RANDOM,
    }
    return render_page("tuning.html.j2", context, package="muai_lab.tuning")


def _headline(result: TuningResult, objective: Objective) -> str:
    confirmation = result.confirmation
    what = objective.title.lower()
    match result.verdict:
        case "confirmed":
            assert confirmation is not None, "nothing is confirmed without a confirmation"
            count = len(result.changes) + (result.engine_preference is not None)
            if confirmation.present_misses is not None and confirmation.kept is not None:
                keys = "1 changed key keeps" if count == 1 else f"{count} changed keys together keep"
                return (
                    f"{keys} the SLO: at least {confirmation.kept.low:.1%} of the requests meet it, with the present "
                    f"configuration at most {confirmation.present_misses.high:.1%} do (95\u00a0% confidence each)."
                )
            brings = "1 changed key brings" if count == 1 else f"{count} changed keys together bring"
            return (
                f"{brings} {confirmation.gain:+.1%} {what}, between {confirmation.low or 0.0:+.1%} and "
                f"{confirmation.high or 0.0:+.1%} with 95\u00a0% confidence."
            )
        case "refused" if confirmation is not None:
            low, high = confirmation.low, confirmation.high
            interval = "given up early" if low is None or high is None else f"{low:+.1%} to {high:+.1%}"
            return (
                f"The best configuration of the search brought {confirmation.gain:+.1%} {what} on fresh load "
                f"({interval}), and was not accepted. The present one stays."
            )
        case "nothing better" | "refused":
            return "The present configuration stays."
        case _:
            return "The best configuration of the search is not confirmed."


def _noise(result: TuningResult) -> str | None:
    if result.noise is None:
        return None
    if not result.noise_samples:
        return f"No configuration was measured twice; runs are taken to differ by {percent(result.noise)}."
    told = (
        f"Runs of one and the same configuration differed by {percent(result.noise)} (standard deviation, "
        f"{plural(result.noise_samples, 'repeat')})."
    )
    if result.drift is not None:
        told += f" From the first repeat to the last the same configuration changed by {result.drift:+.1%}."
    return told


def _changes_grid(settings: LabSettings, result: TuningResult) -> Grid | None:
    """Every change of the best configuration, its worth by itself, and its fate."""
    rows = []
    if result.engine_preference is not None:
        before = show(list(settings.optimization.engine_preference))
        rows.append(("optimization.engine_preference", before, show(list(result.engine_preference)), "-", "-", "kept"))
    tried = {one.path: one for one in result.contributions}
    for path, after in {**result.best_changes, **result.changes}.items():
        one = tried.get(path)
        gain = "-" if one is None or one.gain is None else f"{one.gain:+.1%}"
        interval = "-" if one is None or one.low is None else f"{one.low:+.1%} to {one.high:+.1%}"
        reason = "not looked at by itself" if one is None else one.reason
        rows.append((path, show(value_at(settings.optimization, path)), show(after), gain, interval, reason))
    if not rows:
        return None
    title = "changes of the best configuration, and what each is worth by itself"
    return Grid(title, ("Key", "Present", "Best", "Worth", "95 % interval", "Outcome"), tuple(rows), "lllrrl")


def _engines_grid(result: TuningResult, objective: Objective) -> Grid:
    rows = []
    for entry in result.engines:
        if entry.skipped is not None:
            rows.append((entry.engine, "-", "-", "-", redacted(f"not searched: {entry.skipped}")))
            continue
        best = "-" if entry.best is None else number(entry.best)
        trial = "-" if entry.best_trial is None else str(entry.best_trial)
        stopped = entry.stopped or "-"
        if entry.best is not None and not entry.feasible:
            stopped += "; the best MISSES A BOUND"
        rows.append((entry.engine, f"{entry.trials:,}", best, trial, stopped))
    columns = ("Engine", "Trials", f"Best, {objective.unit}", "In trial", "Why it stopped")
    return Grid("searches", columns, tuple(rows), "lrrrl")


def _search(engine: str, study: TuningStudy, name: str) -> dict[str, Any]:
    """The section about one engine. name: Prefix of the ids of its plots."""
    problem = study.problem
    objective, objectives = problem.objective, problem.objectives
    trials = study.records()
    shown = [trial for trial in trials if trial.outcome in TOOK_TIME]
    importance = importance_of(trials, problem.space, objective)
    overheads = [trial.overhead_s for trial in shown if trial.outcome == "measured" and not trial.restarted]
    return {
        "engine": engine,
        "study": study.name,
        "tally": tally(trials),
        "id": name,
        "history": Markup(history_figure(trials, objective, f"{name}-history")) if shown else None,
        "random": sum(trial.kind == "random" and trial.outcome in TOOK_TIME for trial in trials),
        "importance": Markup(importance_figure(importance, f"{name}-importance")) if importance else None,
        "frontier": Markup(frontier_figure(trials, objectives, f"{name}-frontier"))
        if len(objectives) > 1 and shown
        else None,
        "front": _front_grid(trials, objectives) if len(objectives) > 1 else None,
        "slices": Markup(slices_figure(trials, problem.space, objective, f"{name}-slices")) if shown else None,
        "trials": _trials_grid(trials, problem),
        "failures": _failures_grid(trials, problem),
        "overhead": None if not overheads else duration(max(overheads)),
    }


def _front_grid(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> Grid:
    rows = [
        (str(trial.number), *(number(value) for value in trial.values or ()), _point(trial.point))
        for trial in pareto_front(trials, objectives)
    ]
    columns = ("Trial", *(f"{one.title}, {one.unit}" for one in objectives), "Configuration")
    return Grid("Pareto front", columns, tuple(rows), "l" + "r" * len(objectives) + "l")


def _trials_grid(trials: Sequence[TrialRecord], problem: TuningProblem) -> Grid:
    names = {"present": "present", "random": "random", "search": "proposed", "again": "best, again"}
    objectives = problem.objectives
    has_slo = any(SLO_VIOLATION in trial.violations for trial in trials)
    compared = any(trial.agreement is not None for trial in trials)
    rows = []
    for trial in trials:
        if trial.outcome not in ("measured", "pruned"):
            continue
        rows.append(
            (
                str(trial.number),
                names[trial.kind],
                OUTCOMES[trial.outcome] + (f": {trial.reason}" if trial.reason else ""),
                *(number(value) for value in trial.values or ()),
                *([percent(attainment(trial.blocks))] if has_slo else []),
                *([_agreement(trial)] if compared else []),
                missed(trial.violations) or "none",
                _differences(trial.point, problem),
            )
        )
    columns = (
        "Trial", "Why", "Measured", *(f"{one.title}, {one.unit}" for one in objectives),
        *(["Met the SLO"] if has_slo else []), *(["Agreement"] if compared else []),
        "Missed bounds", "Differs from present in",
    )  # fmt: skip
    title = f"trials with a figure: {len(rows)}"
    return Grid(title, columns, tuple(rows), "rll" + "r" * (len(objectives) + has_slo + compared) + "ll")


def _agreement(trial: TrialRecord) -> str:
    found = trial.agreement
    return "-" if found is None else f"{percent(found.share)}, at least {percent(found.low)}"


def _failures_grid(trials: Sequence[TrialRecord], problem: TuningProblem) -> Grid | None:
    rows = tuple(
        (
            str(trial.number),
            OUTCOMES[trial.outcome],
            redacted((trial.reason or "-")[:_REASON_CHARACTERS]),
            _differences(trial.point, problem),
        )
        for trial in trials
        if trial.outcome not in ("measured", "pruned")
    )
    columns = ("Trial", "Outcome", "Reason", "Differs from present in")
    return Grid(f"trials without a figure: {len(rows)}", columns, rows, "rlll") if rows else None


def _differences(point: Point, problem: TuningProblem) -> str:
    here = problem.space.point_of(problem.present)
    return _point({path: value for path, value in point.items() if here.get(path) != value}) or "as present"


def _point(point: Point) -> str:
    return ", ".join(f"{path.removeprefix('optimization.')}={show(value)}" for path, value in point.items())
