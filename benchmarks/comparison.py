"""Does `compare` find the real differences, and no other? Runs against the reference server.

    python -m benchmarks.comparison [TRIES]

Each try makes three groups of repeats over the same schedules, interleaved: A, A again, and a server that is 10 %
slower. The table counts the differences that are found between the first two (at most one in 20 tries is expected) and
between the first and the third (always), with single runs, which get no verdict, and with all repeats.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import orjson

from muai_lab.analysis import compare, load_run
from muai_lab.analysis.change import BETTER, NOT_COMPARABLE, WORSE
from muai_lab.analysis.frames import Run
from muai_lab.experiment.runner import run_experiment
from muai_lab.load.generator import LoadProgress
from muai_lab.report.comparison_sheet import verdict_text
from muai_lab.settings.compose import compose

REPEATS = 3
SERVERS = {"A": 1.0, "A again": 1.0, "10 % slower": 1.1}
TTFT_MS, ITL_MS = 40.0, 8.0
LOAD = ("arrival=poisson", "arrival.rate=60", "load.warmup_s=0.5", "load.duration_s=3", "load.drain_s=5")


class _Quiet:
    def stage(self, what: str) -> None:
        """Say nothing."""

    def load(self, progress: LoadProgress) -> None:
        """Say nothing."""


@contextmanager
def server(slower: float) -> Iterator[str]:
    """The reference server as a process of its own; its address."""
    times = ["--ttft-ms", str(TTFT_MS * slower), "--itl-ms", str(ITL_MS * slower)]
    command = [sys.executable, "-m", "muai_lab.load.reference_server", *times]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield orjson.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait()


def measure(url: str, seed: int, directory: Path) -> Run:
    """One short run."""
    arguments = ["target=endpoint", f"target.url={url}/v1", "workload=fixed", *LOAD, f"seed={seed}"]
    run_experiment(compose(arguments), directory, _Quiet())
    return load_run(directory)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Make the tries and print how often what was found."""
    tries = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    cases = [(runs, other) for runs in (1, REPEATS) for other in list(SERVERS)[1:]]
    found, judged = dict.fromkeys(cases, 0), dict.fromkeys(cases, 0)
    with ExitStack() as resources, tempfile.TemporaryDirectory() as folder:
        urls = {name: resources.enter_context(server(slower)) for name, slower in SERVERS.items()}
        for attempt in range(tries):
            groups: dict[str, list[Run]] = {name: [] for name in SERVERS}
            for repeat in range(REPEATS):
                order = list(SERVERS) if repeat % 2 == 0 else list(SERVERS)[::-1]
                for name in order:
                    directory = Path(folder) / f"{attempt}-{repeat}-{name}"
                    groups[name].append(measure(urls[name], attempt * REPEATS + repeat, directory))
            for runs, other in cases:
                comparison = compare(groups["A"][:runs], groups[other][:runs])
                if comparison.verdict == NOT_COMPARABLE:
                    continue
                judged[runs, other] += 1
                shown = comparison.verdict in (BETTER, WORSE)
                found[runs, other] += shown
                if shown != (SERVERS[other] != 1.0):
                    say(f"  try {attempt}, A and {other}, {runs} run(s) each: {verdict_text(comparison)}")
    for runs, other in cases:
        say(f"{runs} run(s) each, A and {other}: a difference in {found[runs, other]} of {judged[runs, other]} tries")
    say("tries in which a run was not valid (the machine was too busy for the load generator) do not count")


if __name__ == "__main__":
    main()
