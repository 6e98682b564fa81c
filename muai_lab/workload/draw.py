"""From settings to a schedule: one seed determines everything that is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator

from muai_lab.errors import RunError
from muai_lab.settings.lab import ArrivalSettings, LabSettings, LoadSettings
from muai_lab.workload.arrival import Offsets
from muai_lab.workload.arrival_process import process_of
from muai_lab.workload.kinds import open_source
from muai_lab.workload.prompts import Context, PromptMaker, PromptTokenizer
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.rows import ScheduleRows, Unit
from muai_lab.workload.schedule import Schedule
from muai_lab.workload.source import Source

CLOSED_LOOP_ANSWERS_PER_SLOT_S = 8.0
"""A closed loop sends as fast as it is answered. A schedule holds requests for this many answers per slot and second.
A faster target ends the load early, which the result reports."""
CLOSED_LOOP_MINIMUM = 64
"""Fewest requests of a closed loop."""


# A schedule of more requests would take many hours to draw, and more memory than machines have.
MOST_REQUESTS = 50_000_000


class EmptySchedule(RunError):
    """No request is due within the time of the load."""


def draw_schedule(settings: LabSettings, tokenizer: PromptTokenizer, context_tokens: int | None = None) -> Schedule:
    """Draw the schedule of a run: the same settings, files, seed and tokenizer give the same schedule.

    Args:
        settings: Workload, arrival, load and seed.
        tokenizer: That of the model.
        context_tokens: Context of the model (prompt and output together) if the workload does not set it. Longer
            prompts and outputs are cut and counted in `Schedule.notes`. None cuts nothing.

    Raises:
        RunError: Nothing is due in the given time, prompts of the wanted lengths cannot be made, or a file cannot be
            read.
    """
    check_size(settings.arrival, settings.load)
    streams = RandomStreams(settings.seed)
    if settings.experiment.repeat:  # the first repeat equals a run without repeats
        streams = streams.below(f"repeat {settings.experiment.repeat}")
    context = Context(settings.workload.context_tokens or context_tokens)
    source = open_source(settings.workload, streams, PromptMaker(tokenizer, settings.workload.api, context))
    rows = ScheduleRows()
    notes: tuple[str, ...] = ()
    process = process_of(settings.arrival, source.times_s)
    if process is None:
        _fill_closed_loop(rows, source.units, closed_loop_requests(settings.arrival, settings.load))
    else:
        offsets = process.draw(_horizon_s(settings.load), streams.stream("arrivals"))
        recorded = None if source.times_s is None else len(source.times_s)
        notes = _fill_open_loop(rows, source.units, offsets, settings, recorded)
    if len(rows) == 0:
        raise EmptySchedule(_nothing_due(settings))
    return rows.schedule((*source.notes(), *_time_notes(source, settings.arrival), *context.notes(), *notes))


def _time_notes(source: Source, arrival: ArrivalSettings) -> tuple[str, ...]:
    if source.times_s is None:
        return ()
    if arrival.kind != "trace":
        return (f"recorded times are not used, since arrival.kind is {arrival.kind}: arrival=trace replays them",)
    return source.time_notes if arrival.trace_rate is not None else (*source.time_notes, *source.unit_doubts)


def arrival_rate(settings: LabSettings, schedule: Schedule) -> float | None:
    """Return arrivals per second: the rate of the settings, else the mean over the load; None in the closed loop."""
    process = process_of(settings.arrival)
    if process is None:
        return None
    return process.rate or len(schedule.starts) / _horizon_s(settings.load)


def closed_loop_requests(arrival: ArrivalSettings, load: LoadSettings) -> int:
    """Return the number of requests that a closed loop may need."""
    if load.requests is not None:
        return load.requests
    enough = arrival.concurrency * _horizon_s(load) * CLOSED_LOOP_ANSWERS_PER_SLOT_S
    return max(CLOSED_LOOP_MINIMUM, math.ceil(enough))


def check_size(arrival: ArrivalSettings, load: LoadSettings) -> None:
    """Raise RunError if the load has more requests than a schedule can hold."""
    horizon_s = _horizon_s(load)
    if (process := process_of(arrival)) is not None:
        requests = process.most * horizon_s
    elif load.requests is not None:
        requests = float(load.requests)
    else:
        requests = arrival.concurrency * horizon_s * CLOSED_LOOP_ANSWERS_PER_SLOT_S
    if requests > MOST_REQUESTS:
        raise RunError(
            f"a load of {horizon_s:g} s asks for about {requests:.2g} requests, and a schedule holds at most "
            f"{MOST_REQUESTS:,}: lower load.{'longest_s' if load.automatic else 'duration_s'}, load.requests, or the "
            "rate or concurrency of the arrival"
        )


def _horizon_s(load: LoadSettings) -> float:
    """Return the time for which requests are due, seconds."""
    return load.warmup_s + load.window_s


def _fill_closed_loop(rows: ScheduleRows, units: Iterator[Unit], most: int) -> None:
    """Add units until there are `most` requests; the last session is cut off there."""
    for unit in units:
        left = most - len(rows)
        rows.add(unit[:left])
        if left <= len(unit):
            return


def _fill_open_loop(
    rows: ScheduleRows, units: Iterator[Unit], offsets: Offsets, settings: LabSettings, recorded: int | None
) -> tuple[str, ...]:
    """Add a unit at each time, and return notes if there are too few units, or if a trace ends before the load.

    recorded: arrivals of the trace.
    """
    horizon_s = _horizon_s(settings.load)
    for place, due_s in enumerate(offsets.tolist()):
        unit = next(units, None)
        if unit is None:
            return (f"the schedule has only {place:,} arrivals: none come after {offsets[place - 1]:.1f} s of load",)
        rows.add(unit, due_s)
    if settings.arrival.kind == "trace" and len(offsets) == recorded:
        mean_gap_s = offsets[-1] / max(len(offsets) - 1, 1)
        if offsets[-1] + 10 * mean_gap_s < horizon_s:
            end = f"the recorded arrivals end after {offsets[-1]:.1f} s of load, before its {horizon_s:g} s are over"
            return (f"{end}: lower load.duration_s or arrival.speed",)
    return ()


def _nothing_due(settings: LabSettings) -> str:
    horizon_s = _horizon_s(settings.load)
    arrival = settings.arrival
    process = process_of(arrival)
    rate = "" if process is None or process.rate is None else f" at {process.rate:g} requests/s"
    return (
        f"the schedule is empty: no {arrival.kind} arrival{rate} falls into {horizon_s:g} s; raise arrival.rate or "
        "load.duration_s, or choose another seed"
    )
