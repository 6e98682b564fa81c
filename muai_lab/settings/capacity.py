"""Settings of `capacity`: the search for the highest rate that meets the SLO."""

from __future__ import annotations

from typing import ClassVar

from muai_lab.settings.section import Order, Section, setting


class CapacitySettings(Section):
    """The search for the highest rate that meets the SLO.

    It begins at `arrival.rate` with short probes. Long probes at the edge give the estimate and its interval.
    """

    lowest_rate: float = setting(0.05, "Lowest rate that is probed.", unit="requests/s", gt=0)
    highest_rate: float = setting(10_000.0, "Highest rate that is probed.", unit="requests/s", gt=0)
    growth: float = setting(2.0, "Factor between rates until one meets the SLO and another misses it.", gt=1, le=10)
    resolution: float = setting(
        1.1, "The search halves the bracket until its ends are within this factor of each other.", gt=1, le=2
    )
    repeats: int = setting(
        10,
        "Long probes around the edge. Each is one sample of the interval, which needs at least 6; 0 only searches.",
        ge=0,
        le=100,
    )
    restarts: bool = setting(
        True,
        "Restart the server before each long probe, so that the interval covers several server starts. An endpoint is "
        "never restarted.",
    )
    requests: int = setting(
        200, "Least number of requests due in the window of a probe; a low rate makes the window longer.", ge=20
    )
    longest_s: float = setting(120.0, "Longest window of the search.", unit="s", gt=0)
    edge_longest_s: float = setting(
        900.0,
        "Longest window of a long probe. Its length follows the memory of the queue.",
        unit="s",
        gt=0,
    )
    max_probes: int = setting(40, "End the search after this many probes.", ge=1, le=1000)
    budget_s: float | None = setting(
        None,
        "Longest duration of the whole search: no probe starts that would end later. null for no limit.",
        unit="s",
        gt=0,
    )

    orders: ClassVar[tuple[Order, ...]] = (Order("lowest_rate", "highest_rate", apart=2.0, strict=True),)
