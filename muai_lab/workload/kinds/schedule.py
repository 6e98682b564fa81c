"""`schedule`: a saved schedule, sent again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from muai_lab.errors import RunError
from muai_lab.settings.workload import ScheduleWorkload
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.rows import Unit
from muai_lab.workload.schedule import Schedule
from muai_lab.workload.source import Source


def source(workload: ScheduleWorkload, _streams: RandomStreams, _maker: PromptMaker) -> Source:
    """Return the requests of the file, once, with their times if it has them.

    Raises:
        RunError: The file is missing, damaged or empty, or has turns apart from their session.
    """
    if workload.path is None:
        raise RunError("workload.kind=schedule needs workload.path=RUN/schedule.parquet")
    path = Path(workload.path).expanduser()
    schedule = Schedule.read(path)
    if len(schedule) == 0:
        raise RunError(f"{path} is a schedule without a request")
    _check(path, schedule)
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


def _check(path: Path, schedule: Schedule) -> None:
    """Raises RunError that names the first row that cannot be asked, as a file made by hand may hold it."""
    table = schedule.table
    asks = [table[name].is_valid().to_numpy() for name in ("prompt", "prompt_ids", "messages")]
    think_s = table["think_s"].fill_null(0.0).to_numpy()
    sound = {
        "max_tokens must be at least 1": table["max_tokens"].to_numpy() >= 1,
        "prompt_tokens must be at least 0": table["prompt_tokens"].to_numpy() >= 0,
        "one of prompt, prompt_ids and messages must be given": np.sum(asks, axis=0) == 1,
        "think_s must be at least 0": np.isfinite(think_s) & (think_s >= 0),
        "a session must begin with turn 0": (np.arange(len(table)) > 0) | (table["turn"].fill_null(0).to_numpy() == 0),
        "messages must be a JSON list": _holds(table["messages"].to_pylist(), list),
        "extra must be a JSON object": _holds(table["extra"].to_pylist(), dict),
    }
    for rule, rows in sound.items():
        if not rows.all():
            raise RunError(f"{path}: row {int(np.argmin(rows))}: {rule}; draw it again")


def _holds(texts: list[str | None], kind: type) -> npt.NDArray[np.bool_]:
    return np.array([text is None or isinstance(_parsed(text), kind) for text in texts], dtype=np.bool_)


def _parsed(text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
