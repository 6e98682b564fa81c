"""How `capacity` searches for the highest rate that keeps the promise."""

from __future__ import annotations

from typing import ClassVar

from muai_lab.settings.section import Order, Section, setting


class CapacitySettings(Section):
    """The search begins at `arrival.rate` with short probes; long ones at the edge make the figure and its interval."""

    lowest_rate: float = setting(0.05, "Give up below this rate.", unit="requests/s", gt=0)
    highest_rate: float = setting(10_000.0, "Go no higher than this rate.", unit="requests/s", gt=0)
    growth: float = setting(2.0, "Factor between rates until the promise is once kept and once not.", gt=1, le=10)
    resolution: float = setting(
        1.1, "Halve the bracket until its ends are within this factor of each other.", gt=1, le=2
    )
    repeats: int = setting(
        10,
        "Long probes around the edge that the search found, each a sample of the interval, which needs 6 or more; "
        "0 only searches.",
        ge=0,
        le=100,
    )
    restarts: bool = setting(
        True,
        "Start the server anew for each long probe, so that the interval holds for more than one server start. An "
        "endpoint is never restarted.",
    )
    requests: int = setting(
        200, "Fewest requests due in the window of a probe; at a low rate the window is longer for it.", ge=20
    )
    longest_s: float = setting(120.0, "But no window of the search is longer than this.", unit="s", gt=0)
    edge_longest_s: float = setting(
        900.0,
        "No window of a long probe is longer than this; its length follows the memory of the queue.",
        unit="s",
        gt=0,
    )
    max_probes: int = setting(40, "End the search after this many probes.", ge=1, le=1000)
    budget_s: float | None = setting(
        None, "Begin no probe that would end later than this after the start; null for no limit.", unit="s", gt=0
    )

    orders: ClassVar[tuple[Order, ...]] = (Order("lowest_rate", "highest_rate", apart=2.0, strict=True),)
