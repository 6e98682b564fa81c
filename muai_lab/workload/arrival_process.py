"""The arrival processes of the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from muai_lab.errors import RunError
from muai_lab.settings.lab import ArrivalSettings
from muai_lab.workload.arrival import (
    DiurnalRate,
    Offsets,
    PiecewiseRate,
    constant,
    gamma,
    modulated,
    poisson,
    replayed,
)


@dataclass(frozen=True, slots=True)
class ArrivalProcess:
    """A process of arrivals in the open loop.

    Attributes:
        draw: Returns the offsets below a horizon, seconds.
        most: Upper bound of the mean rate of a load, requests per second; 0 for a trace, which its file bounds.
        rate: The mean rate, requests per second; None if it depends on the time.
    """

    draw: Callable[[float, np.random.Generator], Offsets]
    most: float
    rate: float | None = None


def process_of(arrival: ArrivalSettings, times_s: Offsets | None = None) -> ArrivalProcess | None:
    """Return the process of the settings, None in the closed loop; times_s: recorded times of the workload."""
    rate = arrival.rate
    match arrival.kind:
        case "closed":
            return None
        case "constant":
            return ArrivalProcess(lambda horizon_s, _: constant(rate, horizon_s), rate, rate)
        case "poisson":
            return ArrivalProcess(partial(poisson, rate), rate, rate)
        case "gamma":
            return ArrivalProcess(partial(gamma, rate, arrival.cv), rate, rate)
        case "ramp":
            ramp = PiecewiseRate.ramp(rate, arrival.end_rate, arrival.ramp_s)
            return ArrivalProcess(partial(modulated, ramp), max(rate, arrival.end_rate))
        case "steps":
            steps = PiecewiseRate.steps(arrival.step_rates, arrival.step_s)
            return ArrivalProcess(partial(modulated, steps), max(arrival.step_rates))
        case "diurnal":
            diurnal = DiurnalRate(rate, arrival.amplitude, arrival.period_s)
            return ArrivalProcess(partial(modulated, diurnal), rate, rate)
        case "trace":
            return ArrivalProcess(lambda horizon_s, _: _replayed(arrival, times_s, horizon_s), 0.0)


def _replayed(arrival: ArrivalSettings, times_s: Offsets | None, horizon_s: float) -> Offsets:
    if times_s is None:
        raise RunError(
            "arrival=trace takes its times from the workload, and this one has none (a schedule of a closed "
            "loop has not): choose another arrival"
        )
    span_s = float(times_s[-1] - times_s[0])
    speed = arrival.speed
    if arrival.trace_rate is not None and span_s > 0:
        speed = arrival.trace_rate * span_s / (len(times_s) - 1)
    return replayed(times_s, speed, horizon_s)
