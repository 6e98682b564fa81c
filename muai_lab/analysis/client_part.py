"""The load generator's own part of the figures, as the manifest of a run states it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from muai_lab.analysis.metrics import SHORT_NAMES
from muai_lab.analysis.slo import Slo
from muai_lab.analysis.statistics import min_samples
from muai_lab.visible import tolerated
from muai_lab.wording import duration, percent

_SHOWN = ("ttft_from_intended_s", "ttft_s", "tpot_s", "itl_s", "e2e_from_intended_s", "e2e_s")


def part_of(generator: Mapping[str, Any], column: str) -> dict[str, Any] | None:
    """Return the part of one latency metric, as a summary keeps it; None if it is not known.

    `may_add_s`: the most that the generator can have added, by figure (`mean`, `p50`, ...). `marked`: the figures of
    which that is more than is tolerated.
    """
    added = (generator.get("added") or {}).get(column)
    return None if added is None else {"may_add_s": dict(added["figures_s"]), "marked": list(added["marked"])}


def footnote(generator: Mapping[str, Any], samples: Callable[[str], int]) -> str | None:
    """The sentence that explains the marks; None without any.

    samples: how many samples a latency column has. A quantile of too few is not given, so it has no mark.
    """
    said = []
    for column in _SHOWN:
        added = (generator.get("added") or {}).get(column) or {"marked": (), "figures_s": {}}
        given = [name for name in added["marked"] if samples(column) >= _needed(name)]
        figures = [f"{name} {duration(added['figures_s'][name])}" for name in given]
        if figures:
            said.append(f"{SHORT_NAMES[column]} {', '.join(figures)}")
    if not said:
        return None
    return f"* of the marked figures, up to this much can be the load generator's own delay: {'; '.join(said)}"


def _needed(figure: str) -> int:
    """Fewest samples with which a figure (`mean`, `p50`, ...) is given."""
    return 1 if figure == "mean" else min_samples(float(figure[1:]) / 100)


def promise_in_doubt(added: Mapping[str, Mapping[str, float]], slo: Slo) -> str | None:
    """Return the reason if the generator's own delays can decide which requests meet the SLO, else None.

    The figure that is reported is then the share of requests within a bound, so the part that is tolerated is one of
    that bound. added: seconds by metric column and figure.
    """
    names = [name for name in ("p50", "p90", "p95", "p99") if float(name[1:]) / 100 >= slo.quantile - 1e-9]
    figure = names[0] if names else "p99"
    for metric, bound_ms in (("ttft", slo.ttft_ms), ("e2e", slo.e2e_ms)):
        part = added.get(f"{metric}_from_intended_s") or added.get(f"{metric}_s")
        if bound_ms is None or part is None:
            continue
        if part[figure] > tolerated(bound_ms / 1e3):
            return (
                f"the load generator's own delays can be up to {duration(part[figure])} of the {metric.upper()} of "
                f"{percent(slo.quantile)} of the requests, which must be within {duration(bound_ms / 1e3)}"
            )
    return None


def doubt_of(generator: Mapping[str, Any], slo: Slo) -> str | None:
    """`promise_in_doubt` from the generator's part of a manifest."""
    added = generator.get("added") or {}
    return promise_in_doubt({column: one["figures_s"] for column, one in added.items()}, slo)


def allowing(generator: Mapping[str, Any], slo: Slo) -> Slo:
    """The SLO with bounds that are wider by the most that the generator can have added."""
    added = generator.get("added") or {}

    def wider(metric: str, bound_ms: float | None) -> float | None:
        part = added.get(f"{metric}_from_intended_s") or added.get(f"{metric}_s")
        return bound_ms if bound_ms is None or part is None else bound_ms + 1e3 * max(part["figures_s"].values())

    return replace(slo, ttft_ms=wider("ttft", slo.ttft_ms), e2e_ms=wider("e2e", slo.e2e_ms))
