"""`capacity`: the highest load that a configuration carries within the SLO."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from muai_lab.commands.terminal import command_parser, say
from muai_lab.settings.compose import compose

if TYPE_CHECKING:
    from muai_lab.experiment.capacity import CapacityWatcher
    from muai_lab.experiment.capacity_probe import Probe
    from muai_lab.experiment.capacity_search import NextProbe
    from muai_lab.experiment.runner import RunWatcher
    from muai_lab.load.generator import LoadProgress
    from muai_lab.settings.resolve import Resolved

SUMMARY = "find the highest rate that meets the SLO, with an interval"

_EPILOG = """\
The search begins at arrival.rate and needs an SLO. Short probes of load.duration_s find the edge, and end early once
the SLO cannot be met any more. Then capacity.repeats long probes, each on a server start of its own, give the figure
and its interval; they last as long as the memory of the queue demands. docs/capacity.md explains both.

exit status: 0 a capacity was found, 1 no probed rate meets the SLO or none could be judged, 2 an error

examples:
  python -m muai_lab capacity engine=pytorch slo=interactive
  python -m muai_lab capacity engine=onnx slo=interactive arrival.rate=8 load.duration_s=20 capacity.budget_s=1800
  python -m muai_lab capacity target=endpoint target.url=http://localhost:8000/v1 slo=relaxed slo.quantile=0.95
"""

NO_CAPACITY = 1


def main(argv: Sequence[str]) -> int:
    """Search, print the result and the path of its report; returns the exit status."""
    args = _parser().parse_intermixed_args(argv)

    def resolve(more: Mapping[str, object]) -> Resolved:
        return compose([*args.overrides, *(f"{key}={value}" for key, value in more.items())])

    from muai_lab.experiment.capacity import find_capacity
    from muai_lab.report.capacity_page import capacity_sheet

    now = datetime.now().astimezone()
    directory = args.dir or Path("runs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S-%f}-capacity"
    messages = Console(stderr=True)
    try:
        with _watching(messages) as watcher:
            study = find_capacity(resolve, directory, watcher)
    except KeyboardInterrupt:
        if (directory / "report.html").is_file():
            say(messages, f"partial result: {directory / 'report.html'}")
        raise
    if args.json:
        sys.stdout.write(json.dumps(study.as_document(), indent=2, allow_nan=False) + "\n")
    else:
        capacity_sheet(study).show(Console())
        say(Console(), f"report: {directory / 'report.html'}")
    return NO_CAPACITY if study.capacity is None else 0


class _Watcher:
    """Shows the stages and the load of each probe as a run does, and one line at its end."""

    def __init__(self, console: Console, runs: RunWatcher) -> None:
        self._console = console
        self._runs = runs

    def stage(self, what: str) -> None:
        """See `RunWatcher.stage`."""
        self._runs.stage(what)

    def load(self, progress: LoadProgress) -> None:
        """See `RunWatcher.load`."""
        self._runs.load(progress)

    def probe(self, number: int, ask: NextProbe) -> None:
        """Announce the probe."""
        lead_in = f", after {ask.lead_s:.3g} s of lead-in" if ask.edge else ""
        self._say(f"probe {number}: {ask.rate:.3g} requests/s for {ask.seconds:.3g} s{lead_in}")

    def judged(self, probe: Probe) -> None:
        """Report the outcome of the probe."""
        outcome = f"{probe.outcome.attainment:.1%} of {sum(probe.outcome.due)} requests met the SLO"
        self._say(f"probe {probe.number}: {probe.stopped or outcome} ({probe.verdict})")

    def _say(self, line: str) -> None:
        say(self._console, line)


@contextmanager
def _watching(console: Console) -> Iterator[CapacityWatcher]:
    from muai_lab.commands.progress import watching

    with watching(console) as runs:
        yield _Watcher(console, runs)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "capacity",
        "Find the highest offered rate that meets the SLO, with an interval and the curve.",
        _EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="GROUP=OPTION | KEY=VALUE", help="choices and overrides as for `run`"
    )
    parser.add_argument("--dir", type=Path, metavar="DIRECTORY", help="default: runs/DATE/TIME-capacity")
    parser.add_argument("--json", action="store_true", help="print capacity.json")
    return parser
