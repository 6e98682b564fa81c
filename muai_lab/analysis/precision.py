"""Intervals of a run: the figures whose window is too short for one, and the length of a window that would do.

The headline of a run is the median TTFT of an open loop and the throughput of a closed one. `load.duration_s=auto`
measures until its interval is narrow enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from muai_lab.analysis.dependence import MeasuredSpan
from muai_lab.analysis.statistics import Estimate
from muai_lab.analysis.steadiness import NOT_STEADY
from muai_lab.analysis.summary_schema import PrecisionSummary, ReportedEstimate, Summary
from muai_lab.settings.lab import LoadSettings
from muai_lab.wording import duration

_ORDER = ("mean", "p50", "p90", "p95", "p99", "throughput", "attainment", "goodput")
_WHOLE = 0.98
_LONGEST_S = float(LoadSettings.model_fields["longest_s"].default)
_LONGEST_ADVICE_S = 7 * 86_400.0  # beyond, the load or the figure has to change, not the window


def precision_of(summary: Summary, span: MeasuredSpan | None) -> PrecisionSummary | None:
    """Return the memory of the run and the figures without interval; None if the run has no window.

    `needs_s` is the longest that any of the metrics needs for the statistic.

    Args:
        summary: Its other parts.
        span: The window with its memory.
    """
    if span is None:
        return None
    needs_s: dict[str, float] = {}
    for name, estimate in _estimates(summary):
        if estimate is not None and estimate.needs_s is not None:
            needs_s[name] = max(needs_s.get(name, 0.0), float(estimate.needs_s))
    ordered = {name: needs_s[name] for name in _ORDER if name in needs_s}
    return PrecisionSummary(memory_s=span.memory_s, memories=span.memories, needs_s=ordered)


def _estimates(summary: Summary) -> Iterator[tuple[str, ReportedEstimate | None]]:
    for column in (summary.judged("ttft"), "tpot_s", "itl_s", summary.judged("e2e")):
        if (latency := summary.latency.get(column)) is not None:
            yield from latency.estimates.items()
    yield "throughput", summary.throughput.requests_per_s
    yield "throughput", summary.throughput.output_tokens_per_s
    if summary.slo is not None:
        yield "attainment", summary.slo.attainment
        yield "goodput", summary.slo.goodput_rps


def precision_warning(summary: Summary) -> str | None:
    """Return the note on figures without interval and the window that they need; None if all have theirs."""
    precision = summary.precision
    if precision is None or not precision.needs_s:
        return None
    if summary.validity.steadiness.startswith(NOT_STEADY):
        return "no 95 % intervals for figures of a run that was not steady"
    groups: dict[float, list[str]] = {}
    for name, needs_s in precision.needs_s.items():
        groups.setdefault(rounded_up(needs_s), []).append(name)
    lengths = [_length(needs_s, names) for needs_s, names in sorted(groups.items())]
    return (
        f"too short for some 95 % intervals: {', '.join(lengths)}; the state of queue and batch persists for about "
        f"{duration(precision.memory_s)}"
    )


def _length(needs_s: float, names: list[str]) -> str:
    length = f"at least {needs_s:,.0f} s" if needs_s <= _LONGEST_ADVICE_S else "more than a week"
    return f"{length} for {', '.join(names)}"


def rounded_up(seconds: float) -> float:
    """Round up to two significant digits: 127 s becomes 130 s."""
    if seconds <= 10.0:
        return math.ceil(seconds)
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return math.ceil(seconds / unit - 1e-9) * unit


@dataclass(frozen=True, slots=True)
class Headline:
    """The most important figure of a run. title: in words."""

    title: str
    estimate: Estimate


def headline_of(summary: Summary) -> Headline | None:
    """Return the headline of a summary; None if nothing was measured."""
    throughput = summary.throughput
    if summary.identity.closed_loop:
        found = [
            ("the output tokens per second", throughput.output_tokens_per_s),
            ("the requests per second", throughput.requests_per_s),
        ]
    else:
        found = [
            (title, summary.estimate(summary.judged(metric), "p50"))
            for title, metric in (("the median TTFT", "ttft"), ("the median E2E latency", "e2e"))
        ]
    known = ((title, estimate) for title, estimate in found if estimate is not None)
    return next((Headline(title, Estimate(one.value, one.low, one.high, one.needs_s)) for title, one in known), None)


def interval_step(summary: Summary) -> str | None:
    """Return the next step after a run that was too short for an interval of its headline, None after any other."""
    headline = headline_of(summary)
    needs_s = None if headline is None else headline.estimate.needs_s
    if needs_s is None or needs_s > _LONGEST_ADVICE_S or headline is None:
        return None
    seconds = f"{rounded_up(needs_s):.0f}"
    if summary.window.automatic is not None:
        return f"for an interval of {headline.title} set load.longest_s={seconds} or more"
    longest = f" load.longest_s={seconds}" if needs_s > _LONGEST_S else ""
    return f"for an interval of {headline.title} set load.duration_s=auto{longest}, or load.duration_s={seconds}"


def automatic_note(summary: Summary) -> str | None:
    """Return the reason for which a window of `load.duration_s=auto` ended, and the precision of the headline."""
    asked, length_s = summary.window.automatic, summary.window.duration_s
    headline = headline_of(summary)
    if asked is None or length_s is None:
        return None
    if asked.precise:
        why = f"ended the window after {length_s:.1f} s, as the headline was known precisely enough"
    elif length_s >= _WHOLE * asked.longest_s:
        why = f"ended the window at load.longest_s={asked.longest_s:g}"
    else:
        why = f"had not ended the window when it was over after {length_s:.1f} s"
    if headline is None:
        return f"load.duration_s=auto {why}"
    half = headline.estimate.half_width
    known = "no interval yet" if half is None else f"±{half:.1%}"
    return f"load.duration_s=auto {why}: {known} of {headline.title} (load.precision {asked.precision:.1%})"
