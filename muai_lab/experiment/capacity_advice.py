"""The end of a capacity study in words: the limit that ended it, and what an interval would need, in numbers."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING

from muai_lab.experiment.capacity_search import LEAD_IN, LEAST_EDGES, CapacitySearch

if TYPE_CHECKING:
    from muai_lab.settings.capacity import CapacitySettings

_OVERHEAD_S = 2.0  # the drain and the analysis of a probe
_STEPS_UNBRACKETED = 3  # of growth, as long as the bracket has one end only
_RESERVE = 1.15  # some long probes only lead to the edge


class Limits(Enum):
    """A limit of the settings that ended a study before it was through."""

    BUDGET = "budget_s"
    PROBES = "max_probes"


def ending(search: CapacitySearch, limit: Limits | None, settings: CapacitySettings) -> str | None:
    """Return the limit that ended the study, and its progress by then; None if it ended by itself."""
    if limit is None:
        return None
    what = f"the budget of {settings.budget_s:g} s" if limit is Limits.BUDGET else f"capacity.{limit.value}"
    made = len(search.edges)
    how_far = f"after {made} of {settings.repeats} long probes" if made else "during the search"
    return f"{what} was used up {how_far}"


def without_interval(
    search: CapacitySearch, limit: Limits | None, settings: CapacitySettings, spent_s: float, start_s: float
) -> str:
    """Return the reason why the capacity has no interval, and the settings that would give one.

    Args:
        search: The search with at least one outcome.
        limit: The limit that ended it.
        settings: The settings of the study.
        spent_s: Time that the study took so far, in seconds.
        start_s: Time that a start of the server takes, in seconds; 0 if it is not started anew.
    """
    if limit is not None:
        return f"{_missing(search)}; {_raised(search, limit, settings, spent_s, start_s)}"
    low = search.bracket[0]
    if low is None:
        return f"no rate from {_lowest(search):.3g} requests/s on keeps the SLO; capacity.lowest_rate goes lower"
    if search.capacity().open:
        return (
            f"no rate up to {low:.3g} requests/s breaks the SLO; capacity.highest_rate, or a load generator with "
            "more cores, goes higher"
        )
    if settings.repeats < LEAST_EDGES:
        return (
            f"no interval: capacity.repeats={settings.repeats} makes too few long probes, {LEAST_EDGES} or more give "
            "one (10 by default)"
        )
    near, edge = search.near(), search.capacity().edge
    if edge is None:
        return "no interval: no long probe that counts was made"
    if len(near) >= LEAST_EDGES:
        if search.long_enough():
            return (
                f"no interval: the {len(near)} long probes miss the SLO too seldom, or too unevenly, to show the edge; "
                "more (capacity.repeats) or longer ones (load.duration_s) may"
            )
        longest_s, needed_s = max(one.seconds for one in near), _rounded_up(search.needed_s())
        key = "load.duration_s" if needed_s <= search.plan.edge_longest_s else "capacity.edge_longest_s"
        return (
            f"no interval: long probes of at most {longest_s:.0f} s are too short, as state persists for about "
            f"{search.memory_s():.3g} s and {edge.cluster:.0f} requests miss the SLO together; {key}={needed_s:.0f} "
            "would do"
        )
    return (
        f"no interval: {len(near)} of {len(search.edges)} long probes lie near the edge, and {LEAST_EDGES} are needed; "
        "the capacity may change over time, or capacity.repeats is too small"
    )


def _missing(search: CapacitySearch) -> str:
    low, high = search.bracket
    if low is None:
        return f"no rate was found yet that keeps the SLO, down to {_lowest(search):.3g} requests/s"
    if high is None:
        return f"no rate was found yet that breaks the SLO, up to {low:.3g} requests/s"
    return f"no interval: {LEAST_EDGES} long probes are needed, and {len(search.near())} were made at the edge"


def _raised(search: CapacitySearch, limit: Limits, settings: CapacitySettings, spent_s: float, start_s: float) -> str:
    steps, edges = _steps_left(search), _edges_left(search)
    if limit is Limits.PROBES:
        raised = len(search.outcomes) + steps + math.ceil(_RESERVE * edges)
        return f"capacity.max_probes={raised} would probably do (with --dir, finished probes are kept)"
    rate = search.bracket[0] or _lowest(search)
    short_s = search.plan.warmup_s + search.search_seconds(rate) + _OVERHEAD_S
    long_s = (1.0 + LEAD_IN) * search.edge_seconds(rate) + _OVERHEAD_S + start_s
    total_s = _rounded_up(spent_s + steps * short_s + _RESERVE * edges * long_s)
    return f"capacity.budget_s={total_s:.0f} would probably do (with --dir, finished probes are kept)"


def _steps_left(search: CapacitySearch) -> int:
    """Short probes until the bracket is narrow enough."""
    plan = search.plan
    low, high = search.bracket
    wide = plan.growth if low is None or high is None else high / low
    halvings = math.ceil(math.log2(max(math.log(wide) / math.log(plan.resolution), 1.0)) - 1e-9)
    return halvings + (_STEPS_UNBRACKETED if low is None or high is None else 0)


def _edges_left(search: CapacitySearch) -> int:
    return max(search.plan.repeats - len(search.near()), 0)


def _lowest(search: CapacitySearch) -> float:
    return min(one.rate for one in search.outcomes)


def _rounded_up(seconds: float) -> float:
    from muai_lab.analysis.precision import rounded_up

    return rounded_up(seconds)
