"""Does the server's memory stay flat? Resident memory while it answers 10,000 short requests, 32 at a time.

    python -m benchmarks.server_memory [--requests 10000] [--warmup 1000] [--json]

Requests differ in prompt, length and kind: whole, streamed, and streams that the client drops half-way. Growth is what
comes after the warm-up, in which pools and buffers reach their size.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import psutil

MODEL = "qwen_chat"
MIB = 1024 * 1024
SAMPLES = 10
ANSWER_S = 300.0  # longest that a client here waits


CACHE_MB = 64  # full after the warm-up: a larger prefix cache would fill up while memory is watched


@contextmanager
def server(engine: str) -> Iterator[dict[str, Any]]:
    """A server process; gives what it said when it was ready."""
    command = [
        sys.executable,
        "-m",
        "muai_lab",
        "serve",
        f"engine={engine}",
        f"optimization.cache.max_memory_mb={CACHE_MB}",
    ]
    for part in ("server", "prometheus"):
        command += [f"monitoring.{part}.host=127.0.0.1", f"monitoring.{part}.port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()


def ask(connection: http.client.HTTPConnection, number: int) -> None:
    """Send one request; every eighth stream is dropped at its first piece."""
    draw = random.Random(number)
    fields = {
        "model": MODEL,
        "prompt": [draw.randrange(300, 2000) for _ in range(draw.randint(4, 64))],
        "max_tokens": draw.randint(2, 12),
        "ignore_eos": True,
        "stream": number % 2 == 0,
    }
    connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != http.HTTPStatus.OK:
        raise RuntimeError(f"HTTP {answer.status}: {answer.read().decode(errors='replace')}")
    if number % 16 == 0:
        answer.read1()
        connection.close()  # the next request opens another one
    else:
        answer.read()


def drive(url: str, pid: int, *, requests: int, warmup: int, concurrency: int) -> list[tuple[int, float]]:
    """Send everything; returns (requests so far, resident MiB), the first sample at the end of the warm-up."""
    process, address = psutil.Process(pid), urlsplit(url).netloc
    samples: list[tuple[int, float]] = []

    def client(numbers: range) -> None:
        with closing(http.client.HTTPConnection(address, timeout=ANSWER_S)) as connection:
            for number in numbers:
                ask(connection, number)

    with ThreadPoolExecutor(concurrency) as clients:

        def send(numbers: range) -> None:
            list(clients.map(client, (numbers[place::concurrency] for place in range(concurrency))))
            samples.append((numbers.stop, process.memory_info().rss / MIB))

        send(range(warmup))
        edges = [warmup + (requests - warmup) * step // SAMPLES for step in range(SAMPLES + 1)]
        for start, stop in itertools.pairwise(edges):
            send(range(start, stop))
    return samples


def main() -> None:
    """Print resident memory along the way, and by how much it grew after the warm-up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--warmup", type=int, default=1_000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--engine", default="pytorch")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with server(options.engine) as ready:
        samples = drive(
            ready["url"],
            ready["pid"],
            requests=options.requests,
            warmup=options.warmup,
            concurrency=options.concurrency,
        )
    first, last = samples[0][1], samples[-1][1]
    if options.json:
        sys.stdout.write(json.dumps({"resident_mib": samples, "growth_mib": last - first}) + "\n")
        return
    for done, resident in samples:
        sys.stdout.write(f"{done:>8,} requests  {resident:8.1f} MiB\n")
    sys.stdout.write(f"growth after warm-up: {last - first:+.1f} MiB ({(last - first) / first:+.2%})\n")


if __name__ == "__main__":
    main()
