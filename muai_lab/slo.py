"""The service-level objective (SLO), and the rule by which a request meets it.

A request meets an SLO if it succeeds and keeps every bound. It keeps a bound if the latency was seen and is at most the
bound. TTFT and E2E count from the time at which the request was due. TPOT does not apply to an answer of one token.

Latencies are seconds, and NaN if the client could not see them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from muai_lab.arrays import Bools, Floats

_KEYS = ("ttft_ms", "tpot_ms", "e2e_ms", "quantile")


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds per request in milliseconds (None: not bounded), and the share of requests that must meet them."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    quantile: float = 0.99

    @property
    def bounds_ms(self) -> dict[str, float]:
        """The bounds that are set, by metric name."""
        named = {"ttft": self.ttft_ms, "tpot": self.tpot_ms, "e2e": self.e2e_ms}
        return {name: bound for name, bound in named.items() if bound is not None}

    @property
    def bounds_s(self) -> dict[str, float]:
        """The bounds that are set, in seconds, by metric name."""
        return {name: bound_ms / 1e3 for name, bound_ms in self.bounds_ms.items()}


def slo_of(config: Mapping[str, Any]) -> Slo | None:
    """Return the SLO in the `slo` section of a run's configuration; None if no bound is set."""
    section = config.get("slo")
    if not isinstance(section, Mapping):
        return None
    slo = Slo(**{name: float(section[name]) for name in _KEYS if section.get(name) is not None})
    return slo if slo.bounds_ms else None


@overload
def keeps(metric: str, latency_s: float, tokens: float, bound_s: float) -> bool: ...
@overload
def keeps(metric: str, latency_s: Floats, tokens: Floats, bound_s: float) -> Bools: ...
def keeps(metric: str, latency_s: Any, tokens: Any, bound_s: float) -> Any:
    """True if a successful request keeps one bound.

    Args:
        metric: `ttft`, `tpot` or `e2e`.
        latency_s: One latency or an array of them; NaN if it was not seen.
        tokens: Output tokens, of the same shape; NaN if unknown.
        bound_s: Seconds.

    Returns:
        A bool, or an array of the same shape.
    """
    within = latency_s <= bound_s
    return within | (tokens <= 1) if metric == "tpot" else within


def meets(bounds_s: Mapping[str, float], latencies_s: Mapping[str, float], tokens: float) -> bool:
    """True if a successful request keeps every bound.

    Args:
        bounds_s: Seconds by metric, as `Slo.bounds_s`.
        latencies_s: Seconds by metric, at least for those of `bounds_s`; NaN if not seen.
        tokens: Output tokens; NaN if unknown.
    """
    return all(keeps(metric, latencies_s[metric], tokens, bound_s) for metric, bound_s in bounds_s.items())


def pace_s(decode_s: float, tokens: int) -> float:
    """Return the TPOT of an answer whose tokens were all seen; NaN for one token.

    Args:
        decode_s: Seconds from the first token to the last.
        tokens: Output tokens.
    """
    return decode_s / (tokens - 1) if tokens > 1 else math.nan


def longest_s(slo: Slo, tokens: int) -> float | None:
    """Return the longest time from due to end of a request that keeps every bound; None if nothing limits it.

    Args:
        slo: The bounds.
        tokens: Output tokens of the request.
    """
    limits = [] if slo.e2e_ms is None else [slo.e2e_ms]
    if slo.ttft_ms is not None and (slo.tpot_ms is not None or tokens == 1):
        limits.append(slo.ttft_ms + (tokens - 1) * (slo.tpot_ms or 0.0))
    return min(limits) / 1e3 if limits else None
