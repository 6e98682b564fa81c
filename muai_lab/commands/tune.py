"""`tune`: search a better configuration by measurement, confirm it, and write it as `optimization.yaml`."""

from __future__ import annotations

import argparse
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from muai_lab.commands.terminal import command_parser, say
from muai_lab.settings.compose import compose
from muai_lab.settings.overrides import quoted

if TYPE_CHECKING:
    from muai_lab.tuning.bench import Switch

SUMMARY = "search a better configuration, confirm it, write optimization.yaml"
_INTERRUPTED = 128 + signal.SIGINT

_EPILOG = """\
The configuration that runs today (config_file, environment, choices and overrides, as for `run`) is measured first, and
is what the winner is confirmed against. Ctrl-C stops after the running block and keeps the study; the same command
with tuning.study=DIRECTORY continues it. A second Ctrl-C ends at once.

examples:
  python -m muai_lab tune engine=onnx workload=chat slo=interactive tuning.n_trials=40
  python -m muai_lab tune engine=auto slo=interactive tuning.timeout_s=1200
  python -m muai_lab tune --baseline config/optimization.yaml engine=pytorch slo=interactive
  python -m muai_lab tune engine=onnx slo=interactive tuning.study=studies/chat tuning.sampler=gp
  python -m muai_lab tune engine=onnx slo=interactive tuning.name=chat tuning.storage=postgresql://me@host/studies
"""


def main(argv: Sequence[str]) -> int:
    """Tune and return the exit status: 0 at the end, 130 if interrupted (the study is kept)."""
    args = _parser().parse_intermixed_args(argv)
    baseline = [] if args.baseline is None else [f"config_file={quoted(str(args.baseline))}"]
    resolved = compose([*args.overrides, *baseline])
    from muai_lab.commands.tune_progress import TuneProgress
    from muai_lab.tuning.bench import Switch
    from muai_lab.tuning.export import EXPORTED, UNCONFIRMED
    from muai_lab.tuning.forecast import first_forecast
    from muai_lab.tuning.load_blocks import is_soaked
    from muai_lab.tuning.report import REPORT
    from muai_lab.tuning.storage import study_directory
    from muai_lab.tuning.tuner import tune

    directory = study_directory(resolved.settings.tuning.study)
    messages, output = Console(stderr=True), Console()
    switch = Switch()
    progress = TuneProgress(messages, resolved.settings)
    for line in (f"study: {directory}", first_forecast(resolved.settings.tuning, soaked=is_soaked(resolved.settings))):
        say(messages, line)
    with _stopped_by_interrupt(switch, messages):
        result = tune(resolved, directory, progress, switch)
    lines = [f"{result.verdict}: {result.reason}"]
    if result.missed is not None:
        lines.append(result.missed)
    name = UNCONFIRMED if result.verdict == "unconfirmed" else EXPORTED
    if (directory / name).exists():
        lines.append(f"configuration: {directory / name}")
    if result.verdict == "refused":
        lines.append(f"the refused winner: python -m muai_lab export {shlex.quote(str(directory))} --unconfirmed")
    lines.append(f"report: {directory / REPORT}")
    say(messages, f"took {progress.elapsed}")
    for line in lines:
        say(output, line)
    return _INTERRUPTED if switch.asked else 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("tune", __doc__, _EPILOG)
    parser.add_argument(
        "--baseline",
        metavar="FILE",
        type=Path,
        help="the configuration file that runs today; the same as config_file=FILE",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="GROUP=OPTION | KEY=VALUE",
        help="choices and overrides as for `run`; those of the search are tuning.KEY (docs/configuration.md)",
    )
    return parser


@contextmanager
def _stopped_by_interrupt(switch: Switch, messages: Console) -> Iterator[None]:
    """Stop after the running block at the first Ctrl-C, and at once at the second."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may have signal handlers
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        switch.ask()
        say(messages, "stopping after this block; Ctrl-C again ends at once")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
