"""One schedule divided among several generators."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from muai_lab.load.plan import LoadPlan
from muai_lab.workload.schedule import Schedule


def partition(schedule: Schedule, count: int) -> list[Schedule]:
    """Deal out the requests round robin; a session stays with one generator: a later turn waits for the one before.

    Times and indices are kept, so that the parts together are the schedule. Returns fewer than `count` parts if there
    are fewer requests and sessions.
    """
    rows: list[list[int]] = [[] for _ in range(count)]
    for number, start in enumerate(schedule.starts):
        rows[number % count].extend(range(start, start + 1 + schedule.later_turns(start)))
    return [Schedule(schedule.table.take(pa.array(part, type=pa.int64()))) for part in rows if part]


def share(plan: LoadPlan, part: int, count: int) -> LoadPlan:
    """Return the plan of one of `count` generators: the same times, and its share of the slots and places."""
    places = plan.max_in_flight
    return replace(
        plan,
        concurrency=_part_of(plan.concurrency, part, count),
        max_in_flight=None if places is None else max(_part_of(places, part, count), 1),
    )


def _part_of(whole: int, part: int, count: int) -> int:
    each, left = divmod(whole, count)
    return each + (part < left)
