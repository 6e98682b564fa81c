"""A saved schedule, asked again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from muai_lab.errors import RunError
from muai_lab.settings.workload import ScheduleWorkload
from muai_lab.workload.rows import Unit
from muai_lab.workload.schedule import Schedule
from muai_lab.workload.source import Source


def schedule_source(workload: ScheduleWorkload) -> Source:
    """The requests of the file, as often as they are in it, and their times where it has them.

    Raises RunError when the file is missing, damaged, empty, or has turns that stand apart from their session.
    """
    if workload.path is None:
        raise RunError("workload.kind=schedule needs workload.path=RUN/schedule.parquet")
    path = Path(workload.path).expanduser()
    schedule = Schedule.read(path)
    if len(schedule) == 0:
        raise RunError(f"{path} is a schedule without a request")
    starts = schedule.starts
    times = None
    if schedule.open_loop:
        times = schedule.table["intended_s"].take(starts).to_numpy()
        if not np.all(np.isfinite(times)) or np.any(np.diff(times) < 0) or times[0] < 0:
            raise RunError(f"{path}: the times of its requests are missing, negative or not in order; draw it again")

    def units() -> Iterator[Unit]:
        for row in starts:
            unit = [schedule.request(row + turn) for turn in range(schedule.later_turns(row) + 1)]
            if len({request.session for request in unit}) > 1:
                raise RunError(f"{path}: row {row} and the turns after it are of different sessions; draw it again")
            yield unit

    return Source(units(), times, notes=lambda: tuple(f"when {path.name} was drawn: {note}" for note in schedule.notes))
