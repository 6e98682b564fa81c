"""Runs every benchmark, one after the other: `python -m benchmarks`."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "ruler",
    "client_part",
    "scheduler",
    "stack_throughput",
    "long_prompt",
    "prefix_cache",
    "http_overhead",
    "sse_frames",
    "engines",
    "deepspeed_overhead",
    "onnx_throughput",
    "vllm_overhead",
    "server_memory",
    "hostile_requests",
    "tuner_efficiency",
    "tuned_against_defaults",
    "header_holds",
    "step_time",
    "virtual_time",
    "online_tuner",
    "comparison",
    "coverage",
    "analysis_million",
)


def main() -> int:
    """Run them all, each in a process of its own; the exit status says how many failed."""
    failed = 0
    for name in BENCHMARKS:
        sys.stdout.write(f"\n$ python -m benchmarks.{name}\n")
        sys.stdout.flush()
        failed += subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
