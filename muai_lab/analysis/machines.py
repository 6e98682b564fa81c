"""The machines that runs were made on, as their manifests state them, and the respects in which they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muai_lab.analysis.frames import Run
from muai_lab.wording import plural

_MEMORY_TOLERANCE = 0.05  # firmware and kernel reserve slightly different amounts at each start


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of a manifest.

    Attributes:
        family, instruction_sets: None if the manifest does not state them.
        limits: Variables that disable instruction sets of the processor in libraries, as `name=value`.
    """

    cpu: str | None
    cores: float | None
    gpus: tuple[str, ...]
    memory_bytes: float
    family: str | None
    instruction_sets: frozenset[str] | None
    limits: tuple[str, ...]


def machine_of(run: Run) -> Machine:
    """Return the machine that the run's manifest states."""
    stated = _mapping(run.manifest.get("hardware"))
    sets = stated.get("instruction_sets")
    return Machine(
        cpu=stated.get("cpu"),
        cores=stated.get("cores"),
        gpus=tuple(str(gpu.get("name")) for gpu in stated.get("gpus") or []),
        memory_bytes=float(stated.get("memory_bytes") or 0),
        family=stated.get("cpu_family"),
        instruction_sets=None if sets is None else frozenset(map(str, sets)),
        limits=tuple(f"{name}={value}" for name, value in _mapping(stated.get("instruction_limits")).items()),
    )


def difference(a: Sequence[Run], b: Sequence[Run]) -> str | None:
    """Return the hardware of both sides if it differs, else None.

    A fact that a manifest does not state counts as equal to any; see `unstated`.
    """
    ours, theirs = ([machine_of(run) for run in runs] for runs in (a, b))
    every = [*ours, *theirs]
    sets = {machine.instruction_sets for machine in every} - {None}
    facts = (
        {(machine.cpu, machine.cores, machine.gpus, machine.limits) for machine in every},
        {machine.family for machine in every} - {None},
        sets,
    )
    if any(len(known) > 1 for known in facts):
        sides = [" and ".join(dict.fromkeys(_described(one, every) for one in side)) for side in (ours, theirs)]
        return f"{sides[0]} in A, {sides[1]} in B"
    memory = [machine.memory_bytes for machine in every]
    if max(memory) - min(memory) > _MEMORY_TOLERANCE * max(memory):
        return f"memory of {', '.join(f'{size / 2**30:.3g} GiB' for size in (memory[0], memory[-1]))}"
    return None


def unstated(runs: Sequence[Run]) -> str | None:
    """Return a note on runs whose manifest names a processor but not its instruction sets; None without any."""
    silent = [machine for run in runs if (machine := machine_of(run)).cpu and machine.instruction_sets is None]
    if not silent:
        return None
    return (
        f"the manifest of {plural(len(silent), 'run')} does not state the instruction sets of the {silent[0].cpu}: "
        "processors of one name can differ in them, and speed with them"
    )


def mixture(runs: Sequence[Run]) -> str | None:
    """Return a note on runs from different machines; None if all are from one."""
    if not runs or difference(runs[:1], runs) is None:
        return None
    every = [machine_of(run) for run in runs]
    kinds = dict.fromkeys(_described(machine, every) for machine in every)
    return f"runs of different hardware ({'; '.join(kinds)}): their differences are not those of the configurations"


def _described(machine: Machine, every: Sequence[Machine]) -> str:
    """Return the machine by name, with each further fact in which some of `every` differ."""
    facts = [f"{machine.cpu} with {machine.cores} cores"]
    if len({other.family for other in every} - {None}) > 1:
        facts[0] += f" ({machine.family or 'family not known'})"
    facts += machine.gpus
    if machine.instruction_sets is not None:
        known = [other.instruction_sets for other in every if other.instruction_sets is not None]
        shared, found = frozenset.intersection(*known), frozenset.union(*known)
        if extra := machine.instruction_sets - shared:
            facts.append(f"with {_listed(extra)}")
        elif found - shared:
            facts.append(f"without {_listed(found - shared)}")
    return ", ".join([*facts, *machine.limits])


def _listed(names: Iterable[str]) -> str:
    return " ".join(sorted(names))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
