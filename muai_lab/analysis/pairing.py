"""The pairs of runs of two groups, and the obstacles to their comparison.

Two runs are comparable only with the same schedule, load, model and hardware. Runs over the same schedule make pairs,
so differences between schedules cancel out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from muai_lab.analysis.configuration import differing
from muai_lab.analysis.frames import Run, find_runs, load_run
from muai_lab.analysis.machines import difference, unstated
from muai_lab.analysis.summary_schema import Validity
from muai_lab.analysis.sweep import stored_summary
from muai_lab.analysis.validity import (
    NOT_STEADY,
    NOTHING,
    OVERLOADED,
    REQUESTS_FAILED,
    VALID,
    validity_line,
    validity_of,
)
from muai_lab.errors import RunError
from muai_lab.wording import plural

PairingKind = Literal["invalid", "workload", "model", "hardware"]
DECLARABLE: tuple[PairingKind, ...] = ("workload", "model", "hardware")
"""Differences that the user may declare: a comparison of machines is one across hardware."""

PER_REPEAT = ("seed", "experiment.repeat", "experiment.repeats")
"""Settings in which the repeats of one configuration differ."""

_WINDOW_TOLERANCE = 0.02
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Group:
    """One side of a comparison: a run, or repeats of one configuration in order of time."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A reason why runs cannot be compared."""

    kind: PairingKind
    text: str


@dataclass(frozen=True, slots=True)
class Pairing:
    """The pairs (run of A, run of B). same_schedule: True if both runs of each pair had the same schedule.

    notes: On runs that were left out, and on differences that were declared.
    """

    pairs: tuple[tuple[Run, Run], ...]
    same_schedule: bool
    obstacles: tuple[Obstacle, ...]
    notes: tuple[str, ...]


def load_group(places: str | Path | Iterable[str | Path], name: str | None = None) -> Group:
    """Load the runs in `places` (run directories, or directories with repeats) as one side of a comparison.

    Raises RunError if there is no run, or if the runs are of several configurations.
    """
    paths = [Path(places)] if isinstance(places, str | Path) else [Path(place) for place in places]
    runs = sorted((load_run(path) for path in find_runs(paths)), key=lambda run: run.started)
    named = name or ", ".join(str(path) for path in paths)
    changed = [key for key in differing(runs) if key not in PER_REPEAT]
    if changed:
        raise RunError(
            f"{named} holds {len(runs)} runs of several configurations, which differ in {', '.join(changed[:4])}: "
            "name one run, or a directory with repeats of one configuration"
        )
    return Group(named, tuple(runs))


def pair_runs(a: Group, b: Group, *, across: Collection[str] = (), include_invalid: bool = False) -> Pairing:
    """Pair the runs of two groups by schedule, in order of time if several have the same.

    Args:
        a: The baseline.
        b: The candidate.
        across: Differences that the user declares (`workload`, `model`, `hardware`); they become notes.
        include_invalid: Pair invalid runs too; they remain an obstacle to a verdict.
    """
    notes: list[str] = []
    usable: list[list[Run]] = []
    obstacles: list[Obstacle] = []
    for label, group in (("A", a), ("B", b)):
        usable.append([run for run in group.runs if include_invalid or is_usable(run)])
        bad = [f"{run.path.name}: {validity_line(stated_validity(run))}" for run in group.runs if not is_usable(run)]
        if not usable[-1]:
            obstacles.append(Obstacle("invalid", f"{label} has no valid run ({'; '.join(bad)})"))
        elif bad and include_invalid:
            obstacles.append(Obstacle("invalid", f"invalid runs of {label} are included ({'; '.join(bad)})"))
        else:
            notes += [f"{label}: left out, {line}" for line in bad]
    if not all(usable):
        return Pairing((), False, tuple(obstacles), tuple(notes))
    found = (_other_model(*usable), _other_hardware(*usable))
    obstacles += [obstacle for obstacle in found if obstacle is not None]
    pairs = _by_schedule(*usable)
    same_schedule = bool(pairs)
    if not pairs:
        obstacles.append(_other_workload(*usable))
        pairs = list(zip(*usable, strict=False))
    elif (asked := _other_load(pairs)) is not None:
        obstacles.append(asked)
    if note := _same_run(*usable):
        notes.append(note)
    if note := unstated([*usable[0], *usable[1]]):
        notes.append(note)
    unpaired = sum(map(len, usable)) - 2 * len(pairs)
    if unpaired:
        notes.append(f"{plural(unpaired, 'run')} without a counterpart over the same schedule left out")
    notes += [f"compared across {obstacle.kind}: {obstacle.text}" for obstacle in obstacles if obstacle.kind in across]
    standing = tuple(obstacle for obstacle in obstacles if obstacle.kind not in across)
    return Pairing(tuple(pairs), same_schedule, standing, tuple(notes))


def stated_validity(run: Run) -> Validity:
    """Return the validity in the summary of the run, or a new one if the directory holds none."""
    stored = stored_summary(run)
    return validity_of(run) if stored is None else stored.validity


def is_usable(run: Run) -> bool:
    """True if the figures of a run describe the system: it is valid, over its capacity, or its requests failed."""
    verdict = stated_validity(run).verdict
    return verdict in (VALID, NOT_STEADY, OVERLOADED, REQUESTS_FAILED) or (
        verdict == NOTHING and not run.measured.empty
    )


def _same_run(a: Sequence[Run], b: Sequence[Run]) -> str | None:
    """The note on runs that are on both sides, as themselves or as copies: they would look like agreement."""
    ours, theirs = ({_identity(run): run.path.name for run in runs} for runs in (a, b))
    shared = sorted(ours[one] for one in ours.keys() & theirs.keys())
    if not shared:
        return None
    more = "" if len(shared) <= _NAMED else f" and {len(shared) - _NAMED} more"
    named = f"{', '.join(shared[:_NAMED])}{more}"
    which = "the same runs are" if shared[1:] else "the same run is"
    return f"{which} in A and in B, which says nothing about a difference: {named}"


def _identity(run: Run) -> tuple[Any, ...]:
    """The facts that are equal for a run and its copies only."""
    stated = run.manifest
    made = (str(stated.get(key)) for key in ("started", "clock", "schedule_hash"))
    return (*made, str(run.config), run.window, len(run.requests), float(run.requests["over_s"].sum()))


def _by_schedule(a: Sequence[Run], b: Sequence[Run]) -> list[tuple[Run, Run]]:
    waiting: dict[str, list[Run]] = {}
    for run in b:
        if schedule := run.manifest.get("schedule_hash"):
            waiting.setdefault(str(schedule), []).append(run)
    return [(run, found.pop(0)) for run in a if (found := waiting.get(str(run.manifest.get("schedule_hash"))))]


def _other_workload(a: Sequence[Run], b: Sequence[Run]) -> Obstacle:
    hashes = [sorted({str(run.manifest.get("schedule_hash") or "unknown")[:8] for run in runs}) for runs in (a, b)]
    changed = [key for key in differing([a[0], b[0]]) if key.split(".")[0] in ("workload", "arrival", "load", "seed")]
    where = f", differing in {', '.join(changed[:6])}" if changed else ""
    return Obstacle(
        "workload",
        f"other workload: the schedules have different hashes (A {', '.join(hashes[0])}; B {', '.join(hashes[1])})"
        f"{where}; run both with the same workload, arrival, load and seed",
    )


def _other_load(pairs: Sequence[tuple[Run, Run]]) -> Obstacle | None:
    """The obstacle if the same schedule was offered in another way: with other concurrency, requests or windows."""
    for a, b in pairs:
        for key in ("kind", "concurrency"):
            ours, theirs = ((run.manifest.get("load") or {}).get(key) for run in (a, b))
            if ours != theirs:
                return Obstacle("workload", f"other load: {key} is {ours} in A and {theirs} in B")
        bodies = [(run.config.get("target") or {}).get("extra_body") or {} for run in (a, b)]
        if bodies[0] != bodies[1]:
            return Obstacle("workload", f"other request: target.extra_body is {bodies[0]} in A and {bodies[1]} in B")
        honoured = [_is_honoured(run) for run in (a, b)]
        if honoured[0] != honoured[1]:
            side = "A" if honoured[1] else "B"
            return Obstacle("workload", f"the server of {side} did not give what was asked (see its warnings)")
        windows = [run.window.duration_s if run.window else 0.0 for run in (a, b)]
        if not a.closed_loop and abs(windows[0] - windows[1]) > _WINDOW_TOLERANCE * max(windows):
            return Obstacle("workload", f"other window: {windows[0]:.3g} s in A and {windows[1]:.3g} s in B")
    return None


def _is_honoured(run: Run) -> bool:
    """False if the server is known to have given other numbers of tokens than it was asked for."""
    stored = stored_summary(run)
    return stored is None or stored.asked is None or stored.asked.comparable


def _other_model(a: Sequence[Run], b: Sequence[Run]) -> Obstacle | None:
    def model(run: Run) -> tuple[Any, Any]:
        stated = run.manifest.get("model") or {}
        return stated.get("name"), stated.get("content_hash")

    def shown(value: tuple[Any, Any]) -> str:
        return f"{value[0]} ({str(value[1])[:8]})"

    return _differing_facts("model", a, b, model, shown)


def _other_hardware(a: Sequence[Run], b: Sequence[Run]) -> Obstacle | None:
    found = difference(a, b)
    return None if found is None else Obstacle("hardware", f"other hardware: {found}")


def _differing_facts(
    kind: PairingKind,
    a: Sequence[Run],
    b: Sequence[Run],
    fact: Callable[[Run], tuple[Any, ...]],
    shown: Callable[[tuple[Any, ...]], str],
) -> Obstacle | None:
    ours, theirs = (list(dict.fromkeys(fact(run) for run in runs)) for runs in (a, b))
    if len({*ours, *theirs}) == 1:
        return None
    sides = [" and ".join(shown(value) for value in values) for values in (ours, theirs)]
    return Obstacle(kind, f"other {kind}: {sides[0]} in A, {sides[1]} in B")
