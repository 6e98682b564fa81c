"""The plan of a load: its durations and the number of its slots."""

from __future__ import annotations

from dataclasses import dataclass

from muai_lab.settings.lab import LabSettings


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The durations of a load, in seconds, and its limits.

    Attributes:
        warmup_s: Load before the measurement window.
        duration_s: The measurement window; the longest one if `watched`.
        drain_s: Time for answers after the window.
        request_timeout_s: Limit of one request.
        concurrency: Slots of the closed loop; unused in the open loop, whose times are in the schedule.
        max_in_flight: Most requests in flight in the open loop; None sets no limit.
        watched: The end of the window is decided while the load runs.
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
        """Return the plan of the settings."""
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
