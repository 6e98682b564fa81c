"""One schedule for several generators: who sends what."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from muai_lab.load.plan import LoadPlan
from muai_lab.workload.schedule import Schedule


def partition(schedule: Schedule, count: int) -> list[Schedule]:
    """Deal the requests out in turn; a session stays with one generator: a later turn waits for the one before.

    Keeps times and indices, so that the parts together are the schedule. Gives fewer when there is less to deal out.
    """
    rows: list[list[int]] = [[] for _ in range(count)]
    for number, start in enumerate(schedule.starts):
        rows[number % count].extend(range(start, start + 1 + schedule.later_turns(start)))
    return [Schedule(schedule.table.take(pa.array(part, type=pa.int64()))) for part in rows if part]


def share(plan: LoadPlan, part: int, count: int) -> LoadPlan:
    """The plan of one of `count` generators: the same times, and its share of the slots and places."""
    places = plan.max_in_flight
    return replace(
        plan,
        concurrency=_part_of(plan.concurrency, part, count),
        max_in_flight=None if places is None else max(_part_of(places, part, count), 1),
    )


def _part_of(whole: int, part: int, count: int) -> int:
    each, left = divmod(whole, count)
    return each + (part < left)
