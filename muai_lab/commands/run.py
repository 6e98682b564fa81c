"""`run`: measure a server under load."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from muai_lab.commands.show_composed import check_options, show_composed
from muai_lab.commands.terminal import say
from muai_lab.errors import MuaiError, RequestsFailed, RunError, SettingsError
from muai_lab.settings.compose import Jobs, check_overrides, resolve_job
from muai_lab.settings.hydra_groups import PRIMARY, groups_folder, hydra_message, register_base_nodes
from muai_lab.settings.overrides import parse_overrides, quoted, with_open_mappings

if TYPE_CHECKING:
    from muai_lab.analysis.summary_schema import Validity

SUMMARY = "measure a server under load; writes a run directory and prints the result"
_PROGRAM = "python -m muai_lab run"
_FLAGS = ("-m", "--multirun", "-r", "--run")


def main(argv: Sequence[str]) -> int:
    """Check the whole invocation, then let Hydra run its job or jobs; return the exit status."""
    arguments = _flags_first(argv)
    with _as_program(arguments):
        args = get_args_parser().parse_args(arguments)
    parsed, _ = parse_overrides(args.overrides)
    check_options(args)
    jobs = Jobs()
    if not (args.help or args.hydra_help or args.shell_completion or args.info):
        jobs = check_overrides(args.overrides, multirun=args.multirun)
    if args.cfg and not (args.help or args.hydra_help):
        show_composed(args)
        return 0
    register_base_nodes(parsed)
    arguments = with_open_mappings(arguments)
    if jobs.sweep_dir is None:
        _launch(_run_one, arguments)
        return 0
    for arguments_of_round in _rounds(arguments, jobs):
        _launch(_run_one, arguments_of_round)
    end_sweep(jobs.sweep_dir)
    return 0


def _flags_first(argv: Sequence[str]) -> list[str]:
    """Return the arguments with the choice of run or sweep in front: Hydra accepts no flag between overrides."""
    return sorted(argv, key=lambda argument: argument not in _FLAGS)


def _rounds(arguments: Sequence[str], jobs: Jobs) -> Iterator[list[str]]:
    """Yield the arguments of each round of a sweep: every round makes one run of each configuration.

    Every other round runs backwards, so that slow changes (a machine that warms up) affect all configurations alike.
    """
    asked = next((argument for argument in arguments if argument.startswith("hydra.sweep.subdir=")), None)
    kept = [argument for argument in arguments if not argument.startswith(("hydra.sweep.subdir=", "hydra.sweep.dir="))]
    folder = _folder(jobs) if asked is None else asked.partition("=")[2].strip("'\"")
    for number in range(jobs.repeats):
        given = list(kept)
        if number % 2 and jobs.named:  # else the job's number names its folder
            swept = {values[0].partition("=")[0]: values for values in jobs.swept}
            given = [argument for argument in kept if argument.lstrip("+").partition("=")[0] not in swept]
            given += [f"{key}={','.join(_value(line) for line in reversed(lines))}" for key, lines in swept.items()]
        given += [f"hydra.sweep.dir={quoted(str(jobs.sweep_dir))}", "hydra.mode=MULTIRUN"]
        if jobs.repeats > 1:
            given += [f"experiment.repeat={number}", f"hydra.sweep.subdir='{f'{folder}/repeat-{number}'.lstrip('/')}'"]
        elif folder:
            given.append(f"hydra.sweep.subdir='{folder}'")
        if jobs.named:
            given.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(_left_out(jobs))}]")
        yield given


def _folder(jobs: Jobs) -> str:
    """Return the folder of a configuration below that of the sweep: its differences, or the job's number."""
    if jobs.named:
        return "${hydra.job.override_dirname}" if jobs.repeats > 1 else "${hydra.job.num}-${hydra.job.override_dirname}"
    return "" if jobs.repeats == 1 or jobs.combinations == 1 else "${hydra.job.num}"


def _left_out(jobs: Jobs) -> list[str]:
    return [*jobs.unnamed, *(["experiment.repeat"] if jobs.repeats > 1 else [])]


def _value(line: str) -> str:
    return line.partition("=")[2]


def _run_one(cfg: DictConfig) -> None:
    """Run one job of the invocation. Hydra calls it once for a run and once for each job of a sweep."""
    from muai_lab.commands.progress import watching
    from muai_lab.experiment.directory import is_finished, unfinished
    from muai_lab.experiment.runner import run_experiment
    from muai_lab.report import result_table
    from muai_lab.settings.dump import dump_config_yaml

    hydra_config = HydraConfig.get()
    directory = Path(hydra_config.runtime.output_dir)
    messages = Console(stderr=True)
    sweeping = hydra_config.mode is RunMode.MULTIRUN
    try:
        resolved = resolve_job(cfg)
        if sweeping and is_finished(directory, dump_config_yaml(resolved)):
            say(messages, f"{directory}: finished before, and kept")
            return
        if (ended := unfinished(directory)) is not None:
            replacing = f"{directory}: replacing a run that did not finish ({ended})"
            say(messages, replacing)
        with watching(messages) as watcher:
            summary = run_experiment(resolved, directory, watcher)
    except MuaiError as error:
        if not sweeping:
            raise
        # A job that fails does not end the sweep; end_sweep counts it.
        message = f"muai-lab: {directory.name}: {error}"
        say(messages, message, "red")
        return
    result_table(summary).show(Console())
    say(Console(), f"report: {_short(directory / 'report.html')}")
    if not sweeping:
        _check_answered(summary.validity)


def _check_answered(validity: Validity) -> None:
    """Raise RequestsFailed if the requests of the run failed: the result was shown, and the command fails."""
    from muai_lab.analysis.validity import UNANSWERED

    if validity.verdict in UNANSWERED:
        raise RequestsFailed(f"{validity.verdict}: {validity.reason}")


def end_sweep(sweep: Path) -> None:
    """Print one table of all runs and write the report of the sweep; raises RunError if runs failed."""
    from muai_lab.analysis import find_runs, load_run
    from muai_lab.analysis.configurations import record_sweep_noise
    from muai_lab.analysis.frames import in_order
    from muai_lab.analysis.noise_history import NoiseHistory
    from muai_lab.report import comparison_table, write_sweep_report

    runs = in_order(map(load_run, find_runs(sweep)))
    say(Console(), "")
    history = NoiseHistory.of_user()
    comparison_table(runs, history=history).show(Console())
    say(Console(), f"report: {_short(write_sweep_report(runs, sweep, history=history))}")
    if failure := record_sweep_noise(runs, history):
        say(Console(), f"note: {failure}")
    failed = [str(run.path.relative_to(sweep)) for run in runs if not run.complete]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(runs)} runs did not complete: {', '.join(failed)}; the same command with "
            f"hydra.sweep.dir={_short(sweep)} makes these again and keeps the others"
        )


def _short(path: Path) -> Path:
    """Return the path relative to the current folder if it lies below it."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class _TaskFailed(BaseException):
    """Carries an error of the task past Hydra, which would print a traceback and exit with status 1."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _Task:
    """The task function for Hydra; a module-level class, so that launchers can send it to other processes."""

    def __init__(self, run_one: Callable[[DictConfig], None]) -> None:
        self._run_one = run_one

    def __call__(self, cfg: DictConfig) -> None:
        try:
            self._run_one(cfg)
        except Exception as error:
            raise _TaskFailed(error) from error


def _launch(run_one: Callable[[DictConfig], None], arguments: list[str]) -> None:
    """Run the jobs under Hydra; errors of a job are raised unchanged, Hydra's own as SettingsError or RunError."""
    with _as_program(arguments), _hydra_raises():
        try:
            hydra.main(version_base="1.3", config_path=str(groups_folder()), config_name=PRIMARY)(_Task(run_one))()
        except _TaskFailed as failed:
            raise failed.error from None
        except (HydraException, OmegaConfBaseException) as error:
            raise SettingsError([hydra_message(error)]) from None
        except OSError as error:
            raise RunError(f"cannot write the run directory {error.filename}: {error.strerror}") from None


@contextmanager
def _as_program(arguments: list[str]) -> Iterator[None]:
    """Set `sys.argv`, which Hydra reads."""
    before = sys.argv
    sys.argv = [_PROGRAM, *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Make Hydra raise its errors instead of printing them and ending the process with status 1."""
    name = "HYDRA_FULL_ERROR"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
