"""From settings to a schedule: one seed decides everything that is drawn."""

from __future__ import annotations

import math
from dataclasses import replace

from muai_lab.errors import RunError
from muai_lab.settings.lab import ArrivalSettings, LabSettings, LoadSettings
from muai_lab.workload.arrival import Offsets, constant, poisson
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.schedule import Schedule
from muai_lab.workload.synthetic import PromptTokenizer, draw_requests

# A closed loop asks as fast as it is answered. Enough requests are drawn for this many answers per slot and second;
# a faster target ends the load early, and the result says so.
_CLOSED_LOOP_ANSWERS_PER_SLOT_S = 8.0
_CLOSED_LOOP_MINIMUM = 64


def draw_schedule(settings: LabSettings, tokenizer: PromptTokenizer) -> Schedule:
    """Draw the schedule of a run: the same settings, seed and tokenizer give the same schedule.

    Raises RunError when nothing is due in the given time, or when prompts of the wanted lengths cannot be made.
    """
    streams = RandomStreams(settings.seed)
    offsets = draw_arrivals(settings.arrival, settings.load, streams)
    count = closed_loop_requests(settings.arrival, settings.load) if offsets is None else len(offsets)
    if count == 0:
        horizon_s = settings.load.warmup_s + settings.load.duration_s
        raise RunError(
            f"the schedule is empty: no {settings.arrival.kind} arrival at {settings.arrival.rate:g} requests/s falls "
            f"into {horizon_s:g} s; raise arrival.rate or load.duration_s, or choose another seed"
        )
    requests = draw_requests(settings.workload, count, streams, tokenizer)
    if offsets is not None:
        times = offsets.tolist()
        requests = [replace(request, intended_s=times[request.index]) for request in requests]
    return Schedule.of(requests)


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
