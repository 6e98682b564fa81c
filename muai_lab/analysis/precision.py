"""Does a run span enough of its own memory for intervals, and if not, for how long would it have to be measured?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from muai_lab.analysis.dependence import Span
from muai_lab.analysis.steadiness import NOT_STEADY
from muai_lab.analysis.wording import duration, judged

_ORDER = ("mean", "p50", "p90", "p95", "p99", "throughput", "attainment", "goodput")
_LONGEST_ADVICE_S = 7 * 86_400.0  # beyond, the load or the figure is to be changed, not the window


def precision_of(document: Mapping[str, Any], span: Span | None) -> dict[str, Any] | None:
    """The part `precision` of a summary: the run's memory, and the figures without interval.

    document: the other parts of the summary. `needs_s`: by figure, the length of a window in which the figure has an
    interval; the longest of all metrics. None if the run has no window.
    """
    if span is None:
        return None
    needs_s: dict[str, float] = {}
    for name, estimate in _estimates(document):
        if estimate is not None and estimate.get("needs_s") is not None:
            needs_s[name] = max(needs_s.get(name, 0.0), float(estimate["needs_s"]))
    ordered = {name: needs_s[name] for name in _ORDER if name in needs_s}
    return {"memory_s": span.memory_s, "memories": span.memories, "needs_s": ordered}


def _estimates(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    for column in (judged(document, "ttft"), "tpot_s", "itl_s", judged(document, "e2e")):
        latency = document["latency"].get(column) or {}
        yield from ((name, latency[name]) for name in _ORDER if name in latency)
    throughput = document["throughput"]
    yield from (("throughput", throughput[name]) for name in ("requests_per_s", "output_tokens_per_s"))
    slo = document["slo"] or {}
    yield from ((name, slo.get(key)) for name, key in (("attainment", "attainment"), ("goodput", "goodput_rps")))


def precision_warning(document: Mapping[str, Any]) -> str | None:
    """The note on figures without interval and the window that they need; None if all have theirs."""
    precision = document["precision"]
    if precision is None or not precision["needs_s"]:
        return None
    if str(document["validity"]["steadiness"]).startswith(NOT_STEADY):
        return "no 95 % intervals for figures of a run that was not steady"
    groups: dict[float, list[str]] = {}
    for name, needs_s in precision["needs_s"].items():
        groups.setdefault(rounded_up(needs_s), []).append(name)
    lengths = [_length(needs_s, names) for needs_s, names in sorted(groups.items())]
    return (
        f"too short for some 95 % intervals: {', '.join(lengths)}; the state of queue and batch persists for about "
        f"{duration(precision['memory_s'])}"
    )


def _length(needs_s: float, names: list[str]) -> str:
    length = f"at least {needs_s:,.0f} s" if needs_s <= _LONGEST_ADVICE_S else "more than a week"
    return f"{length} for {', '.join(names)}"


def rounded_up(seconds: float) -> float:
    """Two significant digits, not below: 127 s becomes 130 s."""
    if seconds <= 10.0:
        return math.ceil(seconds)
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return math.ceil(seconds / unit - 1e-9) * unit
