"""How fast and how exact is the load generator? Measured against the reference server in a second process.

    python benchmarks/load_generator.py [--json] [--seconds 5]

Peak: a closed loop of 64 connections against a server that answers at once, 16 streamed tokens each.
Exactness: an open loop at a fixed rate against a server with a fixed time to first token. The client's error is what
it reports minus what the server stamped for the same request, so the server's own late timers do not count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.table import Table

from muai_lab.load.generator import LoadPlan, LoadResult, run_load
from muai_lab.load.openai_http import HttpTarget
from muai_lab.workload.arrival import constant, poisson
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.schedule import Schedule, ScheduledRequest

TOKENS = 16
PROMPT = list(range(1000, 1064))


@contextmanager
def reference_server(ttft_ms: float, itl_ms: float) -> Iterator[str]:
    """A reference server in a process of its own; gives its address."""
    command = [sys.executable, "-m", "muai_lab", "reference-server"]
    command += ["--ttft-ms", str(ttft_ms), "--itl-ms", str(itl_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


def schedule_of(count: int, offsets: np.ndarray | None) -> Schedule:
    """`count` equal requests, with times in the open loop."""
    prompt = np.array(PROMPT, dtype=np.int32)
    times = [None] * count if offsets is None else offsets.tolist()
    return Schedule.of(
        [ScheduledRequest(index, times[index], None, prompt, len(PROMPT), TOKENS) for index in range(count)]
    )


def measured(result: LoadResult) -> list:
    return [record for record in result.records if result.window.phase(record.due_ns) == "measure"]


def peak(seconds: float) -> dict[str, float | str]:
    """Requests per second of the closed loop."""
    plan = LoadPlan(warmup_s=1.0, duration_s=seconds, drain_s=10.0, request_timeout_s=10.0, concurrency=64)
    with reference_server(0, 0) as url:
        schedule = schedule_of(int(30_000 * (seconds + 1)), None)
        result = run_load(schedule, HttpTarget(url, model="reference"), plan)
    records = measured(result)
    ok = sum(record.status == "ok" for record in records)
    return {
        "requests_per_s": len(records) / result.window.measured_s,
        "chunks_per_s": sum(len(record.chunk_tokens) for record in records) / result.window.measured_s,
        "ok_share": ok / len(records),
        "cpu_share": result.generator.cpu_share or 0.0,
        "verdict": result.generator.verdict,
    }


def exactness(rate: float, kind: str, ttft_ms: float, itl_ms: float, seconds: float) -> dict[str, float | str]:
    """Error of the reported latencies against the server's stamps, in milliseconds."""
    plan = LoadPlan(warmup_s=1.0, duration_s=seconds, drain_s=10.0, request_timeout_s=10.0)
    horizon_s = plan.warmup_s + plan.duration_s
    rng = RandomStreams(0).stream("arrivals")
    offsets = constant(rate, horizon_s) if kind == "constant" else poisson(rate, horizon_s, rng)
    with reference_server(ttft_ms, itl_ms) as url:
        result = run_load(schedule_of(len(offsets), offsets), HttpTarget(url, model="reference"), plan)
        with urllib.request.urlopen(f"{url}/stamps") as response:
            stamps = {stamp["request_id"]: stamp for stamp in json.load(response)}
    ours, theirs, tpot_errors, lags = [], [], [], []
    records = measured(result)
    for record in records:
        if record.status != "ok":
            continue
        stamp = stamps[str(record.index)]
        ours.append(record.first_content_ns - record.sent_ns)
        theirs.append(stamp["first_token_ns"] - stamp["received_ns"])
        lags.append(record.sent_ns - record.due_ns)
        decode = (record.last_token_ns - record.first_content_ns) - (stamp["last_token_ns"] - stamp["first_token_ns"])
        tpot_errors.append(decode / (TOKENS - 1))
    reported, true = np.array(ours) / 1e6, np.array(theirs) / 1e6
    error, tpot_error = np.abs(reported - true), np.abs(np.array(tpot_errors)) / 1e6
    return {
        "ok_share": len(ours) / len(records),
        "delivered_per_s": len(records) / result.window.measured_s,
        "ttft_p50_ms": float(np.quantile(reported, 0.5)),
        "ttft_p99_ms": float(np.quantile(reported, 0.99)),
        "true_ttft_p99_ms": float(np.quantile(true, 0.99)),
        "ttft_error_p50_ms": float(np.quantile(error, 0.5)),
        "ttft_error_p99_ms": float(np.quantile(error, 0.99)),
        "ttft_p50_off_ms": float(np.quantile(reported, 0.5) - np.quantile(true, 0.5)),
        "ttft_p99_off_ms": float(np.quantile(reported, 0.99) - np.quantile(true, 0.99)),
        "tpot_error_p99_ms": float(np.quantile(tpot_error, 0.99)),
        "send_lag_p50_ms": float(np.quantile(lags, 0.5)) / 1e6,
        "send_lag_p99_ms": float(np.quantile(lags, 0.99)) / 1e6,
        "cpu_share": result.generator.cpu_share or 0.0,
        "verdict": result.generator.verdict,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--seconds", type=float, default=5.0, help="measurement per case (default 5)")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    results = {"peak, closed loop, 64 connections": peak(seconds)}
    for rate, kind, ttft_ms, itl_ms in [
        (400, "constant", 50, 0),
        (400, "poisson", 50, 0),
        (400, "poisson", 50, 10),
        (1000, "poisson", 50, 10),
    ]:
        name = f"{kind} {rate}/s, {ttft_ms} ms + {itl_ms} ms"
        results[name] = exactness(rate, kind, ttft_ms, itl_ms, seconds)
    console = Console()
    if arguments.json:
        console.print_json(json.dumps(results))
        return
    for name, result in results.items():
        table = Table("measure", "value", title=name, title_justify="left")
        for key, value in result.items():
            table.add_row(key, value if isinstance(value, str) else f"{value:,.3f}")
        console.print(table)


if __name__ == "__main__":
    main()
