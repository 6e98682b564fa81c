"""From settings to a schedule: one seed decides everything that is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator

from muai_lab.errors import RunError
from muai_lab.settings.lab import ArrivalSettings, LabSettings, LoadSettings
from muai_lab.settings.workload import MultiTurnWorkload, SharedPrefixWorkload, SyntheticWorkload, WorkloadSettings
from muai_lab.workload.arrival import Offsets, constant, poisson
from muai_lab.workload.multi_turn import multi_turn_units
from muai_lab.workload.prompts import Context, PromptMaker, PromptTokenizer
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.rows import ScheduleRows, Unit
from muai_lab.workload.schedule import Schedule
from muai_lab.workload.shared_prefix import shared_prefix_units
from muai_lab.workload.synthetic import synthetic_units

# A closed loop asks as fast as it is answered. Enough requests are drawn for this many answers per slot and second;
# a faster target ends the load early, and the result says so.
_CLOSED_LOOP_ANSWERS_PER_SLOT_S = 8.0
_CLOSED_LOOP_MINIMUM = 64


def draw_schedule(settings: LabSettings, tokenizer: PromptTokenizer, context_tokens: int | None = None) -> Schedule:
    """Draw the schedule of a run: the same settings, seed and tokenizer give the same schedule.

    context_tokens: of the model, prompt and output together, where the workload does not set it; what does not fit is
    cut, and `Schedule.notes` says how much. None cuts nothing. Raises RunError when nothing is due in the given time,
    or when prompts of the wanted lengths cannot be made.
    """
    streams = RandomStreams(settings.seed)
    context = Context(settings.workload.context_tokens or context_tokens)
    units = draw_units(settings.workload, streams, PromptMaker(tokenizer, settings.workload.api, context))
    rows = ScheduleRows()
    offsets = draw_arrivals(settings.arrival, settings.load, streams)
    if offsets is None:
        _fill_closed_loop(rows, units, closed_loop_requests(settings.arrival, settings.load))
    else:
        for due_s in offsets.tolist():
            rows.add(next(units), due_s)
    if len(rows) == 0:
        horizon_s = settings.load.warmup_s + settings.load.duration_s
        raise RunError(
            f"the schedule is empty: no {settings.arrival.kind} arrival at {settings.arrival.rate:g} requests/s falls "
            f"into {horizon_s:g} s; raise arrival.rate or load.duration_s, or choose another seed"
        )
    return rows.schedule(context.notes())


def draw_units(workload: WorkloadSettings, streams: RandomStreams, maker: PromptMaker) -> Iterator[Unit]:
    """What arrives, one arrival after another, without end."""
    match workload:
        case SyntheticWorkload():
            return synthetic_units(workload, streams, maker)
        case SharedPrefixWorkload():
            return shared_prefix_units(workload, streams, maker)
        case MultiTurnWorkload():
            return multi_turn_units(workload, streams, maker)


def _fill_closed_loop(rows: ScheduleRows, units: Iterator[Unit], most: int) -> None:
    """Units until there are `most` requests; the last session is cut off there."""
    while (left := most - len(rows)) > 0:
        rows.add(next(units)[:left])


def draw_arrivals(arrival: ArrivalSettings, load: LoadSettings, streams: RandomStreams) -> Offsets | None:
    """Offsets in seconds over warm-up and measurement; None in the closed loop."""
    horizon_s = load.warmup_s + load.duration_s
    match arrival.kind:
        case "closed":
            return None
        case "constant":
            return constant(arrival.rate, horizon_s)
        case "poisson":
            return poisson(arrival.rate, horizon_s, streams.stream("arrivals"))


def closed_loop_requests(arrival: ArrivalSettings, load: LoadSettings) -> int:
    """How many requests a closed loop may need."""
    if load.requests is not None:
        return load.requests
    enough = arrival.concurrency * (load.warmup_s + load.duration_s) * _CLOSED_LOOP_ANSWERS_PER_SLOT_S
    return max(_CLOSED_LOOP_MINIMUM, math.ceil(enough))
