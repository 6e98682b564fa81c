"""The choice of the load generators: this process, several, or other machines."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import pyarrow.compute as pc

from muai_lab.load.crew import GeneratorJob, HttpRecipe, coordinate
from muai_lab.load.ending import Ending
from muai_lab.load.generator import LoadProgress, LoadResult, generate
from muai_lab.load.partition import partition, share
from muai_lab.load.plan import LoadPlan
from muai_lab.load.target import Target
from muai_lab.processor import allowed_cores
from muai_lab.settings.lab import LoadSettings
from muai_lab.workload.schedule import Schedule

# The load of one process: about a third of its peak on a slow core (see docs/ruler.md).
REQUESTS_PER_S = 1_500.0
CHUNKS_PER_S = 25_000.0


async def offer(
    schedule: Schedule,
    target: Target,
    recipe: HttpRecipe | None,
    plan: LoadPlan,
    settings: LoadSettings,
    *,
    progress: Callable[[LoadProgress], None] | None = None,
    ending: Ending | None = None,
) -> LoadResult:
    """Offer the load with the generators of the settings; otherwise as `generate`.

    Args:
        schedule: The requests.
        target: The target of this process.
        recipe: Makes the targets of other processes; None if only this process can generate.
        plan: Durations and number of slots.
        settings: Number and kind of the generators.
        progress: Called several times a second.
        ending: Decides the end of the window, for a plan that is watched.
    """
    count = settings.processes or processes_for(schedule, plan)
    count = min(count, plan.concurrency if not schedule.open_loop else len(schedule))
    if recipe is None or (settings.backend == "processes" and count <= 1):
        return await generate(schedule, target, plan, progress=progress, ending=ending)
    parts = partition(schedule, count)
    jobs = [
        GeneratorJob(f"generator {number + 1} of {len(parts)}", recipe, part, share(plan, number, len(parts)))
        for number, part in enumerate(parts)
    ]
    if settings.backend == "ray":
        from muai_lab.load.ray_cluster import ray_workers

        workers, let_go = ray_workers(jobs, recipe.variables(os.environ))
        try:
            return await coordinate(workers, warmup_s=plan.warmup_s, progress=progress, ending=ending)
        finally:
            let_go()
    from muai_lab.load.processes import ProcessWorker

    processes = [ProcessWorker(job) for job in jobs]
    return await coordinate(processes, warmup_s=plan.warmup_s, progress=progress, ending=ending)


def processes_for(schedule: Schedule, plan: LoadPlan, cores: int | None = None) -> int:
    """Return the number of processes for an open loop of this rate; at most half of the cores, the rest for the server.

    A closed loop gets one: the server determines its rate, which is not known before.
    """
    if not schedule.open_loop:
        return 1
    seconds = plan.warmup_s + plan.duration_s
    chunks: int = pc.sum(schedule.table["max_tokens"]).as_py()
    cores = cores or allowed_cores()
    needed = max(len(schedule) / seconds / REQUESTS_PER_S, chunks / seconds / CHUNKS_PER_S)
    return max(1, min(math.ceil(needed), cores // 2))
