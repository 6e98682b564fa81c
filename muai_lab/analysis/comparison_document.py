"""A comparison as a JSON document, for programs."""

from __future__ import annotations

from typing import Any

from muai_lab.analysis.change import Difference
from muai_lab.analysis.comparison import Comparison
from muai_lab.analysis.moderation import POWER, Prior
from muai_lab.analysis.pairing import is_usable

SCHEMA_VERSION = 2
"""2: one primary figure; the kind of each interval; `noise` is an object for each figure."""


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as a JSON document; shares and relative changes are 0 to 1, latencies are in seconds."""
    judgement = comparison.judgement
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": comparison.verdict,
        "primary": None if judgement.primary is None else {"figure": judgement.primary, "why": judgement.why},
        "reasons": list(comparison.reasons),
        "a": {"name": comparison.a.name, "runs": [str(run.path) for run in comparison.a.runs]},
        "b": {"name": comparison.b.name, "runs": [str(run.path) for run in comparison.b.runs]},
        "invalid_runs": {
            side: [str(run.path) for run in group.runs if not is_usable(run)]
            for side, group in (("a", comparison.a), ("b", comparison.b))
        },
        "pairs": len(comparison.pairing.pairs),
        "power": POWER,
        "figures": {
            one.figure.name: _figure(one, comparison.priors[one.figure.name]) for one in comparison.differences
        },
        "notes": list(comparison.notes),
    }


def _figure(one: Difference, prior: Prior) -> dict[str, Any]:
    """One figure. interval: The noise that it includes. repeats_to_decide: Those for a change of this size.

    noise.unit: The standard deviations are relative, or for a share in units of the root of p (1 - p).
    """
    return {
        "unit": one.figure.unit,
        "better": one.figure.better,
        "a": one.a,
        "b": one.b,
        "change": one.change.value,
        "change_low": one.change.low,
        "change_high": one.change.high,
        "window_needed_s": one.needs_s,
        "interval": None if one.change.low is None else "between runs" if one.between_runs else "within the runs",
        "p": one.p,
        "p_adjusted": one.p_adjusted,
        "detectable": one.detectable,
        "repeats_to_decide": one.repeats,
        "noise": {
            "unit": "relative" if one.figure.scale == "ratio" else "root of p (1 - p)",
            "measured_sd": None if one.noise is None else one.noise.value**0.5,
            "prior": prior.source,
            "prior_sd": prior.variance**0.5,
            "prior_freedom": prior.freedom,
            "earlier_comparisons": prior.comparisons,
        },
        "verdict": one.verdict,
        "reason": one.reason,
    }
