"""`run`: measure a server under load."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from muai_lab.errors import RunError, SettingsError
from muai_lab.settings.compose import check_overrides, resolve_job
from muai_lab.settings.dump import dump_config_yaml
from muai_lab.settings.hydra_groups import PRIMARY, groups_folder, register_base_nodes
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
        if jobs.described and not any("hydra.sweep.subdir" in argument for argument in arguments):
            # Each job's folder is named by what differs between the jobs.
            arguments += [
                f"hydra.job.config.override_dirname.exclude_keys=[{','.join(jobs.constant)}]",
                "hydra.sweep.subdir='${hydra.job.num}-${hydra.job.override_dirname}'",
            ]
    register_base_nodes(parsed)
    _launch(_run_one, arguments)
    return 0


def _run_one(cfg: DictConfig) -> None:
    """One job of the invocation. Hydra calls it once for a run and once for each job of a sweep."""
    resolved = resolve_job(cfg)
    sys.stdout.write(dump_config_yaml(resolved))


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
            raise SettingsError([" ".join(str(error).split())]) from None
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
