"""Requests collected into a schedule's columns, block by block, so that a million of them fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from muai_lab.workload.schedule import SCHEDULE_SCHEMA, Schedule, ScheduledRequest

Unit = Sequence[ScheduledRequest]
"""The requests of one arrival: one, or all turns of a session. `index` and `session` are set when it is added."""

_BLOCK = 8192


class ScheduleRows:
    """A schedule that is being drawn."""

    def __init__(self) -> None:
        self._rows: list[tuple[object, ...]] = []
        self._blocks: list[pa.RecordBatch] = []
        self._sessions = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, unit: Unit, intended_s: float | None = None) -> None:
        """Append a unit; `intended_s`: due time of its first request."""
        session = None
        if unit[0].turn is not None:
            session = self._sessions
            self._sessions += 1
        for place, request in enumerate(unit):
            due_s = intended_s if place == 0 else None
            values = {"index": self._count, "intended_s": due_s, "session": session}
            self._rows.append(
                tuple(values[name] if name in values else getattr(request, name) for name in SCHEDULE_SCHEMA.names)
            )
            self._count += 1
        if len(self._rows) >= _BLOCK:
            self._close_block()

    def schedule(self, notes: tuple[str, ...] = ()) -> Schedule:
        """Return the schedule of all units."""
        self._close_block()
        return Schedule(pa.Table.from_batches(self._blocks, schema=SCHEDULE_SCHEMA), notes)

    def _close_block(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else ([] for _ in SCHEDULE_SCHEMA)
        arrays = [
            pa.array(list(values), type=field.type) for field, values in zip(SCHEDULE_SCHEMA, columns, strict=True)
        ]
        self._blocks.append(pa.record_batch(arrays, schema=SCHEDULE_SCHEMA))
        self._rows = []
