"""Does a run span enough of its own memory for intervals, and if not, for how long would it have to be measured?

The headline of a run is the median TTFT of an open loop and the throughput of a closed one; its interval is what
`load.duration_s=auto` waits for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from muai_lab.analysis.dependence import MeasuredSpan
from muai_lab.analysis.estimates import judged
from muai_lab.analysis.statistics import Estimate
from muai_lab.analysis.steadiness import NOT_STEADY
from muai_lab.settings.lab import LoadSettings
from muai_lab.wording import duration

_ORDER = ("mean", "p50", "p90", "p95", "p99", "throughput", "attainment", "goodput")
_WHOLE = 0.98
_LONGEST_S = float(LoadSettings.model_fields["longest_s"].default)
_LONGEST_ADVICE_S = 7 * 86_400.0  # beyond, the load or the figure is to be changed, not the window


def precision_of(document: Mapping[str, Any], span: MeasuredSpan | None) -> dict[str, Any] | None:
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


@dataclass(frozen=True, slots=True)
class Headline:
    """The figure that says most about a run. title: in words."""

    title: str
    estimate: Estimate


def headline_of(document: Mapping[str, Any]) -> Headline | None:
    """The headline of a summary; None if nothing was measured."""
    throughput, latency = document["throughput"], document["latency"]
    found: list[Headline | None]
    if document["identity"]["arrival"] == "closed":
        found = [
            _headline("the output tokens per second", throughput["output_tokens_per_s"]),
            _headline("the requests per second", throughput["requests_per_s"]),
        ]
    else:
        found = [
            _headline(title, (latency.get(judged(document, metric)) or {}).get("p50"))
            for title, metric in (("the median TTFT", "ttft"), ("the median E2E latency", "e2e"))
        ]
    return next((one for one in found if one is not None), None)


def _headline(title: str, estimate: Mapping[str, Any] | None) -> Headline | None:
    if estimate is None:
        return None
    return Headline(title, Estimate(*(estimate.get(name) for name in ("value", "low", "high", "needs_s"))))


def interval_step(document: Mapping[str, Any]) -> str | None:
    """The next step after a run whose headline has no interval for want of time; None for any other."""
    headline = headline_of(document)
    needs_s = None if headline is None else headline.estimate.needs_s
    if needs_s is None or needs_s > _LONGEST_ADVICE_S or headline is None:
        return None
    seconds = f"{rounded_up(needs_s):.0f}"
    if document["window"]["automatic"] is not None:
        return f"for an interval of {headline.title} set load.longest_s={seconds} or more"
    longest = f" load.longest_s={seconds}" if needs_s > _LONGEST_S else ""
    return f"for an interval of {headline.title} set load.duration_s=auto{longest}, or load.duration_s={seconds}"


def automatic_note(document: Mapping[str, Any]) -> str | None:
    """Why a window of `load.duration_s=auto` ended, and how precisely the headline is known."""
    asked, headline = document["window"]["automatic"], headline_of(document)
    length_s = document["window"]["duration_s"]
    if asked is None or length_s is None:
        return None
    if asked["precise"]:
        why = f"ended the window after {length_s:.1f} s, as the headline was known precisely enough"
    elif length_s >= _WHOLE * asked["longest_s"]:
        why = f"ended the window at load.longest_s={asked['longest_s']:g}"
    else:
        why = f"had not ended the window when it was over after {length_s:.1f} s"
    if headline is None:
        return f"load.duration_s=auto {why}"
    half = headline.estimate.half_width
    known = "no interval yet" if half is None else f"±{half:.1%}"
    return f"load.duration_s=auto {why}: {known} of {headline.title} (load.precision {asked['precision']:.1%})"
