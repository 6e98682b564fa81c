"""A million requests, analysed into a report: how long it takes, and how much memory.

    python -m benchmarks.analysis_million [REQUESTS]

The records are made up: Poisson arrivals over an hour and more, 16 output tokens of one chunk each, 1 % failures, and
server metrics every half a second. Then a fresh process loads them, summarises them and writes the report; its time and
its peak memory are printed.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from muai_lab.request_record import REQUESTS_SCHEMA

RATE = 250.0
TOKENS = 16
WARMUP_S = 10.0
START_NS = 5_000_000_000_000


def write_run(directory: Path, requests: int) -> None:
    """Make up the records of a run."""
    rng = np.random.default_rng(0)
    due = np.cumsum(rng.exponential(1.0 / RATE, requests))
    sent = due + rng.gamma(2.0, 0.0002, requests)
    first = sent + rng.lognormal(-3.0, 0.4, requests)
    gaps = rng.lognormal(-4.6, 0.3, (requests, TOKENS - 1))
    chunks = first[:, None] + np.concatenate([np.zeros((requests, 1)), np.cumsum(gaps, axis=1)], axis=1)
    ok = rng.random(requests) > 0.01
    stamps = {
        "intended_ns": due,
        "sent_ns": sent,
        "first_content_ns": np.where(ok, chunks[:, 0], np.nan),
        "last_token_ns": np.where(ok, chunks[:, -1], np.nan),
        "stream_end_ns": np.where(ok, chunks[:, -1] + 0.0001, sent + 0.01),
    }
    lengths = np.where(ok, TOKENS, 0)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    flat = (START_NS + chunks[ok].ravel() * 1e9).astype(np.int64)
    columns: dict[str, pa.Array] = {
        "index": pa.array(np.arange(requests)),
        "phase": pa.array(np.where(due < WARMUP_S, "warmup", "measure")),
        "status": pa.array(np.where(ok, "ok", "error")),
        "http_status": pa.array(np.where(ok, 200, 500).astype(np.int32)),
        "error": pa.array(np.where(ok, None, "HTTP 500: the engine died").tolist(), pa.string()),
        "finish_reason": pa.array(np.where(ok, "length", None).tolist(), pa.string()),
        "prompt_tokens": pa.array(rng.integers(16, 129, requests)),
        "output_tokens": pa.array(np.where(ok, TOKENS, 0), mask=~ok),
        "max_tokens": pa.array(np.full(requests, TOKENS)),
        "read_together": pa.array(np.zeros(requests, dtype=np.int64)),
        "chunk_t_ns": pa.ListArray.from_arrays(offsets, pa.array(flat)),
        "chunk_tokens": pa.ListArray.from_arrays(offsets, pa.array(np.ones(flat.size, dtype=np.int32))),
    }
    for name, seconds in stamps.items():
        missing = np.isnan(seconds)
        ns = (START_NS + np.nan_to_num(seconds) * 1e9).astype(np.int64)
        columns[name] = pa.array(ns, mask=missing)
    arrays = [columns.get(field.name, pa.nulls(requests, field.type)).cast(field.type) for field in REQUESTS_SCHEMA]
    directory.mkdir(parents=True)
    pq.write_table(pa.table(arrays, schema=REQUESTS_SCHEMA), directory / "requests.parquet")
    end_s = float(due[-1])
    _write_metrics(directory / "server_metrics.parquet", end_s, rng)
    stamp = {"load_start_ns": 0.0, "measure_start_ns": WARMUP_S, "measure_end_ns": end_s, "drain_end_ns": end_s + 5.0}
    manifest = {
        "status": "complete",
        "window": {name: START_NS + int(seconds * 1e9) for name, seconds in stamp.items()},
        "load": {"kind": "poisson", "rate": RATE, "target": "server"},
        "generator": {"verdict": "ok"},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (directory / "config.yaml").write_text("slo: {ttft_ms: 100, tpot_ms: 15, quantile: 0.9}\n", encoding="utf-8")


def _write_metrics(path: Path, end_s: float, rng: np.random.Generator) -> None:
    t_ns = START_NS + (np.arange(0.0, end_s, 0.5) * 1e9).astype(np.int64)
    names = (
        "muai_running_sequences",
        "muai_waiting_requests",
        "cpu_usage_percent",
        "batch_size_sum",
        "batch_size_count",
    )
    table = {
        "t_ns": np.repeat(t_ns, len(names)),
        "name": list(names) * t_ns.size,
        "labels": ["{}"] * (len(names) * t_ns.size),
        "value": rng.uniform(0, 30, len(names) * t_ns.size),
    }
    pq.write_table(pa.table(table), path)


def analyse(directory: Path) -> None:
    """Load, summarise, write the report; prints each step's seconds and the peak memory."""
    begun = time.perf_counter()
    from muai_lab.analysis import load_run, summarise
    from muai_lab.report import write_report

    steps = {"import": time.perf_counter() - begun}
    run = load_run(directory)
    steps["load"] = time.perf_counter() - begun - sum(steps.values())
    summary = summarise(run)
    steps["summarise"] = time.perf_counter() - begun - sum(steps.values())
    report = write_report(run, summary)
    steps["report"] = time.perf_counter() - begun - sum(steps.values())
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in steps.items())
    sys.stdout.write(
        f"{len(run.requests):,} requests, {run.chunks.row.size:,} chunks: {sum(steps.values()):.1f} s ({told}), "
        f"peak {peak_gib:.2f} GiB, report of {report.stat().st_size / 2**20:.1f} MiB\n"
    )


def main() -> int:
    """Make up the records, then analyse them in a process of its own."""
    if sys.argv[1:2] == ["--analyse"]:
        analyse(Path(sys.argv[2]))
        return 0
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        write_run(directory, requests)
        command = [sys.executable, "-m", "benchmarks.analysis_million", "--analyse", str(directory)]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
