"""`run --cfg`: the configurations that an invocation would measure, and Hydra's own, without a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from enum import Enum
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from muai_lab.errors import SettingsError
from muai_lab.settings.compose import composed_jobs
from muai_lab.settings.dump import dump_config_yaml
from muai_lab.settings.hydra_groups import compose_config, hydra_session
from muai_lab.settings.overrides import parse_overrides
from muai_lab.settings.resolve import Resolved


def check_options(args: argparse.Namespace) -> None:
    """Raise SettingsError for options of `run` that exclude each other: Hydra would print a traceback."""
    problems = []
    chosen = [
        name
        for name, given in (
            ("--run", args.run),
            ("--cfg", args.cfg),
            ("--info", args.info),
            ("--shell-completion", args.shell_completion),
        )
        if given
    ]
    if args.multirun and chosen not in ([], ["--cfg"]):
        chosen.insert(0, "--multirun")
    if len(chosen) > 1:
        problems.append(f"{', '.join(chosen)}: choose one of them")
    if args.resolve and not (args.cfg or args.help):
        problems.append("--resolve: it belongs to --cfg (which shows resolved values anyway)")
    if args.package and not args.cfg:
        problems.append("--package: it belongs to --cfg")
    if getattr(args, "experimental_rerun", None):
        problems.append("--experimental-rerun: not supported; a run's report has the command that repeats it")
    if args.shell_completion and not any("=" in override for override in args.overrides):
        problems.append("--shell-completion: it needs install=SHELL, uninstall=SHELL or query=SHELL")
    if problems:
        raise SettingsError(problems)


def show_composed(args: argparse.Namespace) -> None:
    """Print the output of `--cfg job`, `hydra` or `all`, one YAML document for each configuration of a sweep.

    Each value of the job has its origin as a comment. Raises SettingsError for a package that does not exist.
    """
    jobs = list(composed_jobs(args.overrides, multirun=args.multirun))
    for label, overrides, resolved in jobs:
        if len(jobs) > 1:
            sys.stdout.write(f"---\n# {label}\n")
        sys.stdout.writelines(f"{line}\n" for line in _lines(args, overrides, resolved))


def _lines(args: argparse.Namespace, overrides: list[str], resolved: Resolved) -> Iterator[str]:
    text = "" if args.cfg == "hydra" else dump_config_yaml(resolved)
    if args.cfg != "job":
        text += _hydra_yaml(overrides, resolve=args.resolve)
    yield from text.splitlines() if args.package in (None, "_global_") else _below(text, args.package)


def _hydra_yaml(overrides: list[str], *, resolve: bool) -> str:
    with hydra_session(parse_overrides(overrides)[0]):
        node = compose_config(overrides).hydra
        plain = _resolved(node) if resolve else OmegaConf.to_container(node, resolve=False, enum_to_str=True)
    return yaml.safe_dump({"hydra": plain}, sort_keys=False, allow_unicode=True, width=1000)


def _resolved(node: DictConfig) -> dict[str, Any]:
    """Return plain values with interpolations resolved, except those that need a running job (its number)."""
    written: Any = OmegaConf.to_container(node, resolve=False, enum_to_str=True)
    values = {}
    for name, raw in written.items():
        try:
            value = node[name]
            if OmegaConf.is_list(value):
                value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException:
            value = raw
        values[name] = _resolved(value) if isinstance(value, DictConfig) else raw if isinstance(value, Enum) else value
    return values


def _below(text: str, package: str) -> Iterator[str]:
    """Yield the lines of the section at the dotted path, without its own line, with the comments."""
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for name in package.split("."):
        entries = {key.value: value for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
        if name not in entries:
            raise SettingsError([f"--package {package}: no such section of the configuration"])
        root = entries[name]
    lines = text.splitlines()[root.start_mark.line : max(root.end_mark.line, root.start_mark.line + 1)]
    yield f"# @package {package}"
    yield from (line[root.start_mark.column :] for line in lines)
