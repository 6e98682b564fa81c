"""Run directories made up for tests of the analysis: a small simulated server, or records written out by hand."""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from muai_lab.request_record import INTEGER, REQUESTS_SCHEMA, TEXT

START_NS = 5_000_000_000_000  # the monotonic clock at the start of the load

CONFIG: dict[str, Any] = {
    "optimization": {
        "enabled": True,
        "engine_preference": ["vllm", "pytorch"],
        "batcher": {"enabled": True, "max_batch_size": 16, "batch_timeout_ms": 50},
    },
    "monitoring": {"anomaly": {"webhook_url": "https://hooks.example.org/T0PS3CRET"}},
    "model": {"name": "qwen_chat", "checkpoint": None},
    "workload": {"name": "chat"},
    "arrival": {"kind": "poisson", "rate": 20.0},
    "load": {"warmup_s": 4.0, "duration_s": 26.0},
    "slo": {"ttft_ms": None, "tpot_ms": None, "e2e_ms": None, "quantile": 0.99},
    "target": {"kind": "server", "url": None, "api_key_env": "MY_KEY"},
    "seed": 7,
}


def at(seconds: float | None) -> int | None:
    """A stamp, `seconds` after the start of the load."""
    return None if seconds is None else START_NS + round(seconds * 1e9)


def record(
    index: int = 0,
    *,
    due: float | None = 0.0,
    closed: bool = False,
    sent: float | None = 0.0,
    chunks: Sequence[float] = (),
    chunk_tokens: Sequence[int] | None = None,
    output_tokens: int | None = None,
    status: str = "ok",
    **fields: Any,
) -> dict[str, Any]:
    """One record from times in seconds after the start of the load; one token per chunk unless said otherwise."""
    counts = [1] * len(chunks) if chunk_tokens is None else list(chunk_tokens)
    row: dict[str, Any] = dict.fromkeys(REQUESTS_SCHEMA.names)
    row |= {
        "index": index,
        "phase": "measure",
        "intended_ns": None if closed else at(due),
        "released_ns": at(due) if closed else None,
        "sent_ns": at(sent),
        "first_content_ns": at(chunks[0]) if chunks else None,
        "last_token_ns": at(chunks[-1]) if chunks else None,
        "last_content_ns": at(chunks[-1]) if chunks else None,
        "decode_tokens": sum(counts[1:]) if chunks else None,
        "stream_end_ns": at(chunks[-1]) if chunks else at(sent),
        "status": status,
        "http_status": 200 if status == "ok" else 500,
        "prompt_tokens": 10,
        "output_tokens": (sum(counts) if chunks else None) if output_tokens is None else output_tokens,
        "max_tokens": output_tokens or sum(counts) or 64,
        "read_together": 0,
        "chunk_t_ns": [at(t) for t in chunks],
        "chunk_tokens": counts,
    }
    return row | fields


def write_run(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    *,
    measure: tuple[float, float] = (0.0, 10.0),
    drain_end: float | None = None,
    status: str = "complete",
    manifest: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    origins: Mapping[str, str] | None = None,
    server_metrics: Sequence[tuple[float, str, Mapping[str, str], float]] | None = None,
) -> Path:
    """Write a run directory; server_metrics: (seconds after the start of the load, name, labels, value)."""
    path.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([dict(row) for row in records], schema=REQUESTS_SCHEMA)
    pq.write_table(table, path / "requests.parquet")
    if server_metrics is not None:
        columns = {
            "t_ns": pa.array([at(t) for t, *_ in server_metrics], INTEGER),
            "name": pa.array([name for _, name, _, _ in server_metrics], TEXT),
            "labels": pa.array([json.dumps(dict(labels), sort_keys=True) for *_, labels, _ in server_metrics], TEXT),
            "value": pa.array([value for *_, value in server_metrics], pa.float64()),
        }
        pq.write_table(pa.table(columns), path / "server_metrics.parquet")
    stated: dict[str, Any] = {
        "status": status,
        "error": None,
        "started": "2026-01-31T12:00:00+00:00",
        "finished": "2026-01-31T12:00:40+00:00",
        "clock": {"monotonic_ns": START_NS, "unix_ns": 1_769_860_800_000_000_000},
        "window": {
            "load_start_ns": START_NS,
            "measure_start_ns": at(measure[0]),
            "measure_end_ns": at(measure[1]),
            "drain_end_ns": at(measure[1] if drain_end is None else drain_end),
        },
        "versions": {"muai_lab": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "hardware": {
            "cpu": "Example CPU", "cpu_family": "Example family 1 model 2", "instruction_sets": ["avx", "avx2"],
            "instruction_limits": {}, "cores": 2, "memory_bytes": 8 * 2**30, "gpus": [],
        },
        "seed": 7,
        "schedule_hash": "5c4ed01e" * 8,
        "engine": {
            "name": "pytorch", "version": "2.13.0", "device": "cpu", "dtype": "fp32", "max_model_len": 2048,
            "details": {"threads": 2},
        },
        "skipped_engines": [["vllm", "the package vllm is not installed (pip install 'muai-lab[vllm]')"]],
        "model": {"name": "qwen_chat", "kind": "embedded", "content_hash": "abc123", "checkpoint": None},
        "load": {"kind": "poisson", "rate": 20.0, "concurrency": None, "target": "server"},
        "generator": {"cpu_share": 0.21, "send_lag_p99_s": 0.0011, "verdict": "ok", "reason": None},
    }  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(stated | dict(manifest or {})))
    settings = _merged(CONFIG, config or {})
    (path / "config.yaml").write_text("\n".join(["# file: none", *_lines(settings, "", dict(origins or {}))]) + "\n")
    return path


def _lines(tree: Mapping[str, Any], prefix: str, origins: Mapping[str, str]) -> list[str]:
    """A settings tree as the runner writes it: the origin of each value behind it, as a comment."""
    lines = []
    indent = "  " * prefix.count(".")
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *_lines(value, f"{prefix}{key}.", origins)]
        else:
            lines.append(f"{indent}{key}: {json.dumps(value)}  # {origins.get(f'{prefix}{key}', 'default')}")
    return lines


def simulated(
    path: Path,
    *,
    rate: float = 20.0,
    slots: int = 16,
    step_s: float = 0.012,
    tokens: tuple[int, int] = (8, 48),
    warmup: float = 4.0,
    duration: float = 26.0,
    failures: float = 0.0,
    burst: int = 1,
    seed: int = 0,
    **written: Any,
) -> Path:
    """A run against a simulated server: Poisson arrivals, `slots` places, first come first served.

    step_s: time per token with an empty batch; it grows with the number of busy places. failures: share of requests
    that end in an error. burst: tokens per chunk.
    """
    rng = np.random.default_rng(seed)
    end = warmup + duration
    due = np.cumsum(rng.exponential(1.0 / rate, size=int(rate * end * 1.5) + 10))
    due = due[due < end]
    free = [0.0] * slots
    rows: list[dict[str, Any]] = []
    spans: list[tuple[float, float, float]] = []  # queued, admitted, over
    for index, t in enumerate(due):
        sent = t + rng.gamma(2.0, 0.00015)
        prompt, count = int(rng.integers(16, 129)), int(rng.integers(tokens[0], tokens[1] + 1))
        admitted = max(heapq.heappop(free), sent + 0.001)
        busy = sum(place > admitted for place in free)
        first = admitted + 0.006 + prompt * 2e-4 + rng.gamma(2.0, 0.002)
        gaps = step_s * (1.0 + 0.05 * busy) * rng.lognormal(0.0, 0.12, size=count - 1)
        times = first + np.concatenate([[0.0], np.cumsum(gaps)])
        phase = "warmup" if t < warmup else "measure"
        heapq.heappush(free, float(times[-1]))
        spans.append((sent, admitted, float(times[-1])))
        shared = {"phase": phase, "prompt_tokens": prompt, "max_tokens": count, "session": index, "turn": 0}
        if rng.random() < failures:
            rows.append(record(index, due=t, sent=sent, status="error", error="HTTP 500: engine died", **shared))
            continue
        seen = times[burst - 1 :: burst] if burst > 1 else times
        left = count - burst * len(seen)
        carried = [burst] * len(seen) + ([left] if left else [])
        seen = np.append(seen, times[-1]) if left else seen
        rows.append(record(index, due=t, sent=sent, chunks=[float(s) for s in seen], chunk_tokens=carried, **shared))
    over = max((span[2] for span in spans), default=end)
    measure = (warmup, end)
    metrics = _scrapes(spans, over)
    return write_run(path, rows, measure=measure, drain_end=max(over, end), **({"server_metrics": metrics} | written))


def _scrapes(
    spans: Sequence[tuple[float, float, float]], over: float
) -> list[tuple[float, str, dict[str, str], float]]:
    labels = {"engine": "pytorch", "model": "qwen_chat"}
    queued, admitted, done = (np.array(column) for column in zip(*spans, strict=True)) if spans else ([],) * 3
    scrapes: list[tuple[float, str, dict[str, str], float]] = []
    steps, batched = 0.0, 0.0
    for t in np.arange(0.0, over + 0.5, 0.5):
        running = float(np.sum((admitted <= t) & (done > t))) if spans else 0.0
        waiting = float(np.sum((queued <= t) & (admitted > t))) if spans else 0.0
        steps += 40.0
        batched += 40.0 * running
        scrapes += [
            (t, "muai_running_sequences", labels, running),
            (t, "muai_waiting_requests", {"model": "qwen_chat"}, waiting),
            (t, "batch_size_count", {"model": "qwen_chat"}, steps),
            (t, "batch_size_sum", {"model": "qwen_chat"}, batched),
            (t, "muai_process_resident_bytes", {}, 4e8),
            (t, "cpu_usage_percent", {}, 60.0),
        ]
    return scrapes


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return merged
