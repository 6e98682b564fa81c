"""The document of a capacity search, made up for tests of its sheet and its page."""

from __future__ import annotations

from typing import Any


def probe(number: int, rate: float, share: float, *, stopped: str | None = None, edge: bool = False) -> dict[str, Any]:
    """A probe of 100 requests at `rate` requests/s, of which `share` met the SLO. stopped: why it ended early."""
    return {
        "number": number,
        "rate_rps": rate,
        "window_s": 10.0,
        "due": 100,
        "met": round(100 * share),
        "attainment": share,
        "goodput_rps": None if stopped else rate * share,
        "ttft_p50_s": 0.05,
        "tpot_p50_s": 0.01,
        "verdict": "stopped early" if stopped else "valid",
        "stopped": stopped,
        "counts": True,
        "edge": edge,
        "directory": f"probe-{number:02d}",
    }


def capacity_document(**changes: Any) -> dict[str, Any]:
    """A search that found 17.2 requests/s, with the given keys replaced."""
    return {
        "status": "complete",
        "ended": None,
        "no_interval": None,
        "end_found": True,
        "interval": {
            "long_probes": 10,
            "server_starts": 10,
            "can_restart": True,
            "shortest_window_s": 60.0,
            "memory_s": 2.0,
        },
        "slo": {"ttft": 500.0, "tpot": 50.0, "quantile": 0.99},
        "capacity_rps": {"value": 17.2, "low": 15.0, "high": 20.1},
        "bracket_rps": {"kept": 16.0, "lost": 32.0},
        "engine": {"name": "pytorch", "version": "2.13.0", "device": "cpu", "dtype": "fp32"},
        "model": "qwen_chat",
        "workload": "chat",
        "arrival": "poisson",
        "probes": [probe(0, 8.0, 1.0), probe(1, 16.0, 0.995), probe(2, 32.0, 0.4, stopped="over")],
    } | changes
