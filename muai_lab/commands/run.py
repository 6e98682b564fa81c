"""`run`: measure a server under load."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from muai_lab.errors import MuaiError, RunError, SettingsError
from muai_lab.settings.compose import check_overrides, resolve_job
from muai_lab.settings.hydra_groups import PRIMARY, groups_folder, hydra_message, register_base_nodes
from muai_lab.settings.overrides import parse_overrides

_PROGRAM = "python -m muai_lab run"


def main(argv: Sequence[str]) -> int:
    """Check the whole invocation, then let Hydra run its job or jobs; returns the exit status."""
    arguments = list(argv)
    with _as_program(arguments):
        args = get_args_parser().parse_args(arguments)
    parsed, _ = parse_overrides(args.overrides)
    if not (args.help or args.hydra_help or args.shell_completion or args.info):
        jobs = check_overrides(args.overrides, multirun=args.multirun)
        if jobs.named and not any("hydra.sweep.subdir" in argument for argument in arguments):
            # Each job's folder is named by what differs between the jobs.
            arguments += [
                f"hydra.job.config.override_dirname.exclude_keys=[{','.join(jobs.unnamed)}]",
                "hydra.sweep.subdir='${hydra.job.num}-${hydra.job.override_dirname}'",
            ]
    register_base_nodes(parsed)
    _launch(_run_one, arguments)
    return 0


def _run_one(cfg: DictConfig) -> None:
    """One job of the invocation. Hydra calls it once for a run and once for each job of a sweep."""
    from muai_lab.analysis import result_table
    from muai_lab.commands.progress import watching
    from muai_lab.experiment.runner import run_experiment

    hydra_config = HydraConfig.get()
    directory = Path(hydra_config.runtime.output_dir)
    messages = Console(stderr=True)
    try:
        with watching(messages) as watcher:
            summary = run_experiment(resolve_job(cfg), directory, watcher)
    except MuaiError as error:
        if hydra_config.mode is not RunMode.MULTIRUN:
            raise
        # One job that fails does not take the rest of the sweep with it; SweepEnd counts it.
        messages.print(f"muai-lab: {directory.name}: {error}", style="red", markup=False, highlight=False)
        return
    result_table(summary).show(Console())
    _say(f"report: {_short(directory / 'report.html')}")


class SweepEnd(Callback):
    """Compares the runs of a sweep at its end (a Hydra callback, see conf/config.yaml)."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print one table of all runs. A sweep in which runs failed ends with their number as its error."""
        from muai_lab.analysis import comparison_table, find_runs, load_run

        sweep = Path(config.hydra.sweep.dir)
        try:
            runs = [load_run(path) for path in find_runs(sweep)]
        except MuaiError as error:  # Hydra would turn it into a warning
            raise _TaskFailed(error) from error
        _say("")
        comparison_table(runs).show(Console())
        _say(f"runs: {_short(sweep)}")
        failed = [run.path.name for run in runs if not run.complete]
        if failed:
            raise _TaskFailed(RunError(f"{len(failed)} of {len(runs)} runs did not complete: {', '.join(failed)}"))


def _say(line: str) -> None:
    Console().print(line, markup=False, highlight=False, soft_wrap=True)


def _short(path: Path) -> Path:
    """Relative to the current folder where it lies below it."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class _TaskFailed(BaseException):
    """Carries an error of the task past Hydra, which would print a traceback and exit with status 1."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _Task:
    """The task function as Hydra gets it; a module-level class, so that launchers can send it to other processes."""

    def __init__(self, run_one: Callable[[DictConfig], None]) -> None:
        self._run_one = run_one

    def __call__(self, cfg: DictConfig) -> None:
        try:
            self._run_one(cfg)
        except Exception as error:
            raise _TaskFailed(error) from error


def _launch(run_one: Callable[[DictConfig], None], arguments: list[str]) -> None:
    """Run the jobs under Hydra; errors come out as they are, Hydra's own as ours."""
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
    """Hydra reads `sys.argv`."""
    before = sys.argv
    sys.argv = [_PROGRAM, *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Hydra raises its errors, where it would else print them and end the process with status 1."""
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
