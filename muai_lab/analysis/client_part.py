"""The load generator's own part of the figures, as the manifest of a run states it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from muai_lab.analysis.metrics import METRIC_BY_NAME, judged_columns, shown_in
from muai_lab.analysis.statistics import min_samples
from muai_lab.analysis.summary_schema import ClientPart
from muai_lab.slo import Slo
from muai_lab.visible import tolerated
from muai_lab.wording import duration, percent

_Part = TypeVar("_Part")

_SHOWN = [
    METRIC_BY_NAME[name]
    for metric in shown_in("comparison")
    for name in (metric.from_intended, metric.name)
    if name is not None
]


def parts_of(generator: Mapping[str, Any]) -> dict[str, ClientPart]:
    """Return the generator's part of each latency metric, by column. generator: That section of the manifest."""
    return {
        column: ClientPart(may_add_s=dict(added["figures_s"]), marked=tuple(added["marked"]))
        for column, added in (generator.get("added") or {}).items()
    }


def footnote(generator: Mapping[str, Any], samples: Callable[[str], int]) -> str | None:
    """Return the sentence that explains the marks; None if no figure has one.

    Args:
        generator: The section `generator` of the manifest.
        samples: The number of samples of a latency column. A quantile of too few has no value, so it has no mark.
    """
    parts = parts_of(generator)
    notes = []
    for metric in _SHOWN:
        part = parts.get(metric.column)
        if part is None:
            continue
        given = [name for name in part.marked if samples(metric.column) >= _needed(name)]
        if given:
            listed = ", ".join(f"{name} {duration(part.may_add_s[name])}" for name in given)
            notes.append(f"{metric.short} {listed}")
    if not notes:
        return None
    return f"* of the marked figures, up to this much can be the load generator's own delay: {'; '.join(notes)}"


def _judged(parts: Mapping[str, _Part], metric: str) -> _Part | None:
    return next((part for column in judged_columns(metric) if (part := parts.get(column))), None)


def _needed(statistic: str) -> int:
    """Fewest samples for which a statistic (`mean`, `p50`, ...) is shown."""
    return 1 if statistic == "mean" else min_samples(float(statistic[1:]) / 100)


def slo_in_doubt(added: Mapping[str, Mapping[str, float]], slo: Slo) -> str | None:
    """Return the reason if the generator's own delays can decide which requests meet the SLO, else None.

    The reported figure is then the share of requests within a bound, so the tolerated delay is relative to that bound.

    Args:
        added: Seconds that the generator can have added, by metric column and statistic.
        slo: The bounds.
    """
    names = [name for name in ("p50", "p90", "p95", "p99") if float(name[1:]) / 100 >= slo.quantile - 1e-9]
    statistic = names[0] if names else "p99"
    for metric, bound_ms in (("ttft", slo.ttft_ms), ("e2e", slo.e2e_ms)):
        part = _judged(added, metric)
        if bound_ms is None or part is None:
            continue
        if part[statistic] > tolerated(bound_ms / 1e3):
            return (
                f"the load generator's own delays can be up to {duration(part[statistic])} of the {metric.upper()} of "
                f"{percent(slo.quantile)} of the requests, which must be within {duration(bound_ms / 1e3)}"
            )
    return None


def doubt_of(generator: Mapping[str, Any], slo: Slo) -> str | None:
    """`slo_in_doubt` from the section `generator` of a manifest."""
    return slo_in_doubt({column: part.may_add_s for column, part in parts_of(generator).items()}, slo)


def allowing(generator: Mapping[str, Any], slo: Slo) -> Slo:
    """Return the SLO with each bound wider by the longest delay that the generator can have added."""
    parts = parts_of(generator)

    def wider(metric: str, bound_ms: float | None) -> float | None:
        part = _judged(parts, metric)
        return bound_ms if bound_ms is None or part is None else bound_ms + 1e3 * max(part.may_add_s.values())

    return replace(slo, ttft_ms=wider("ttft", slo.ttft_ms), e2e_ms=wider("e2e", slo.e2e_ms))
