"""The rule that ends a measurement window of automatic length: looks at the headline while the load continues.

A sequential procedure of relative fixed width (Chow and Robbins 1965; Glynn and Whitt 1992,
https://doi.org/10.1214/aoap/1177005777): the window is long enough at the first look at which the half-width of the
headline's interval is at most the wanted share of its value. Stopping at the first narrow interval favours intervals
that are too narrow. So there are few looks, each at a window `GROWTH` times as long as the one before. The adequacy
rule of `dependence` holds at each of them, and the look before must have predicted about the same width.
`python -m benchmarks.coverage sequential` measures the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muai_lab.analysis.dependence import MeasuredSpan, middles_s, span_of
from muai_lab.analysis.statistics import Estimate, describe, rate
from muai_lab.analysis.window import in_flight_at
from muai_lab.arrays import Floats

FIRST_LOOK_S = 20.0
GROWTH = 1.5
"""Length of the window at a look ÷ that at the look before."""
_SLACK = 1.2  # the width that the look before predicts ÷ the wanted one, at most


@dataclass(frozen=True, slots=True)
class Seen:
    """The requests of a running load so far; seconds on one clock, NaN if missing or if the request failed.

    Attributes:
        sent_s: Due times of the requests that were sent. [sent]
        due_s, over_s: Due time and end of the requests that have ended. [ended]
        ttft_s, tpot_s, e2e_s: Their latencies; TTFT and E2E from the due time in an open loop. [ended]
        tokens: Their output tokens. [ended]
    """

    sent_s: Floats
    due_s: Floats
    over_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    tokens: Floats


@dataclass(frozen=True, slots=True)
class Look:
    """The headline after a window of `length_s` seconds."""

    length_s: float
    figure: str
    estimate: Estimate


def enough(looks: Sequence[Look], precision: float) -> bool:
    """True if the interval of the last look is narrow enough, and the look before predicted about that width.

    Args:
        looks: All looks so far.
        precision: Wanted half-width, relative to the value.
    """
    if len(looks) < 2:
        return False
    before, now = (look.estimate.half_width for look in looks[-2:])
    if before is None or now is None or now > precision:
        return False
    return before * math.sqrt(looks[-2].length_s / looks[-1].length_s) <= _SLACK * precision


def look_at(seen: Seen, start_s: float, length_s: float, *, open_loop: bool) -> Look:
    """Return the headline of the window so far: the median TTFT of an open loop, the throughput of a closed one.

    If the client sees no first tokens, the median E2E latency replaces TTFT. Without token counts the rate of requests
    replaces that of tokens.

    Args:
        seen: The requests so far.
        start_s, length_s: The window.
        open_loop: True for an open loop.
    """
    span = _span(seen, start_s, length_s)
    if open_loop:
        figure, values = ("TTFT", seen.ttft_s) if np.isfinite(seen.ttft_s).any() else ("E2E latency", seen.e2e_s)
        inside = (seen.due_s >= start_s) & np.isfinite(values)
        found = describe(values[inside], seen.due_s[inside], span, quantiles=(0.5,)).quantiles["p50"]
        return Look(length_s, f"median {figure}", found)
    inside = (seen.over_s >= start_s) & (seen.over_s < start_s + length_s) & np.isfinite(seen.e2e_s)
    counted = inside & np.isfinite(seen.tokens)
    if counted.any():
        return Look(length_s, "output tokens per second", rate(seen.tokens[counted], seen.over_s[counted], span))
    return Look(length_s, "requests per second", rate(np.ones(int(inside.sum())), seen.over_s[inside], span))


def _span(seen: Seen, start_s: float, length_s: float) -> MeasuredSpan:
    measured = seen.due_s >= start_s
    due_s = seen.due_s[measured]
    return span_of(
        start_s,
        length_s,
        seen.sent_s[seen.sent_s >= start_s],
        in_flight_at(seen.sent_s, seen.over_s, middles_s(start_s, length_s)),
        [(each[measured], due_s) for each in (seen.ttft_s, seen.tpot_s, seen.e2e_s)],
    )
