"""How a schedule is offered: for how long, in how many slots."""

from __future__ import annotations

from dataclasses import dataclass

from muai_lab.settings.lab import LabSettings


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How long load is offered, and how long answers are awaited; seconds.

    duration_s: of the measurement window; the longest, if its end is decided while the load runs (`watched`).
    concurrency: slots of the closed loop; not used in the open loop, where the schedule has the times. max_in_flight:
    most requests in flight in the open loop; None does not bound them.
    """

    warmup_s: float
    duration_s: float
    drain_s: float
    request_timeout_s: float
    concurrency: int = 1
    max_in_flight: int | None = None
    watched: bool = False

    @classmethod
    def of(cls, settings: LabSettings) -> LoadPlan:
        """The plan that the settings ask for."""
        load = settings.load
        return cls(
            warmup_s=load.warmup_s,
            duration_s=load.window_s,
            drain_s=load.drain_s,
            request_timeout_s=load.request_timeout_s,
            concurrency=settings.arrival.concurrency,
            max_in_flight=load.max_in_flight,
            watched=load.automatic,
        )
