"""Estimates of a summary: values with their intervals, by metric and statistic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def value_of(estimate: Mapping[str, Any] | None) -> float | None:
    """The figure of an estimate of a summary; None where there is none."""
    return None if estimate is None else estimate.get("value")


def estimate_of(summary: Mapping[str, Any], column: str, figure: str) -> Mapping[str, Any] | None:
    """One estimate of a latency metric (`mean`, `p50`, ...) of a summary."""
    latency = summary["latency"].get(column)
    found = latency.get(figure) if latency else None
    return found if isinstance(found, Mapping) else None


def clients_part(summary: Mapping[str, Any], column: str, figure: str) -> float | None:
    """Seconds of a figure that can be the load generator's own delay; None unless they are too many to be ignored."""
    client = (summary["latency"].get(column) or {}).get("client") or {"marked": ()}
    return float(client["may_add_s"][figure]) if figure in client["marked"] else None


def judged(summary: Mapping[str, Any], metric: str) -> str:
    """The column of `ttft` or `e2e` that counts: from the intended time where the run has one (open loop)."""
    from_intended = f"{metric}_from_intended_s"
    return from_intended if summary["latency"].get(from_intended) else f"{metric}_s"
