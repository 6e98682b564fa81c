"""Settings from Hydra's configuration groups and command-line overrides.

Hydra composes; then one function turns the result into the frozen tree, and no module behind it imports omegaconf.
Values of chosen options and overrides win over environment and file; all other keys follow environment, file and
defaults. The module keeps no state, so jobs may run in other processes.

Before a run, every job of the invocation is composed and resolved once. A typing mistake gives the valid names instead
of a traceback, and no sweep fails at a later job because of one.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from muai_lab.errors import SettingsError
from muai_lab.settings.catalogue import find_key
from muai_lab.settings.hydra_groups import compose_config, hydra_message, hydra_session
from muai_lab.settings.origin import OVERRIDE, Given, Layer, Origin
from muai_lab.settings.overrides import name_problems, parse_overrides
from muai_lab.settings.resolve import Resolved, flatten, load_settings

# With more jobs than this, only every value of every swept key is composed once, not every combination.
MOST_COMBINATIONS = 24
# A folder's name may have 255 bytes; this leaves room for the job's number.
_LONGEST_FOLDER_NAME = 200


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs of an invocation.

    Attributes:
        combinations: Number of configurations.
        named: Groups and keys whose values distinguish the configurations and fit into the name of a job's folder.
        unnamed: The other groups and keys that were given.
        swept: The values (`key=value`) of every key that has several, in the order of the sweep.
        repeats: Runs of each configuration; 1 if a single one of several repeats was requested.
        sweep_dir: Folder of the jobs of a multirun, None for a single run.
    """

    combinations: int = 1
    named: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    swept: tuple[tuple[str, ...], ...] = ()
    repeats: int = 1
    sweep_dir: Path | None = None


def compose(argv: Sequence[str]) -> Resolved:
    """Resolve group choices (`batcher=latency`) and overrides (`arrival.rate=8`) without running anything.

    Raises:
        SettingsError: A mistyped group, option or key, with the nearest valid ones, or an invalid value.
    """
    parsed, problems = parse_overrides(argv)
    sweeps = [override.get_key_element() for override in parsed if override.is_sweep_override()]
    problems += [f"{key}: one value is expected here, not several" for key in sweeps]
    with hydra_session(parsed) as loader:
        _stop_at(problems + name_problems(parsed, loader))
        return _compose_job([override.input_line or "" for override in parsed])


def resolve_job(cfg: DictConfig) -> Resolved:
    """Return the settings of the task that Hydra runs now; cfg: the configuration that it passed to the task."""
    return _resolve(cfg, cast(DictConfig, HydraConfig.get()))


def check_overrides(argv: Sequence[str], *, multirun: bool = False) -> Jobs:
    """Check every configuration that this invocation of `run` would compose, before anything runs.

    Args:
        argv: Overrides only.
        multirun: Allows several values per key. An experiment may also request that.

    Raises:
        SettingsError: Mistyped groups, options and keys with the nearest valid ones; invalid values with the job in
            which they occur; a secret on the command line, which Hydra would print and record.
    """
    parsed, problems = parse_overrides(argv)
    secrets = [key for override in parsed if (key := find_key(override.key_or_group)) is not None and key.secret]
    problems += [
        f"{key.path}: a secret does not belong on the command line, which run directories record; "
        f"set {key.env_long} or use the configuration file"
        for key in secrets
    ]
    with hydra_session(parsed) as loader:
        _stop_at(problems + name_problems(parsed, loader))
        first = [next(_lines(override)) for override in parsed]
        cfg = compose_config(first)
        multirun = multirun or str(cfg.hydra.mode).endswith("MULTIRUN")
        swept = [override for override in parsed if override.is_sweep_override()]
        if not multirun:
            _stop_at([f"{override.get_key_element()}: several values need -m (--multirun)" for override in swept])
            repeats = _repeats(_resolve(cfg, cfg.hydra))
            return Jobs(repeats=repeats, sweep_dir=_sweep_dir(cfg) if repeats > 1 else None)
        everything = _with_sweeper_params(parsed, cfg)
        _stop_at(name_problems(everything, loader))
        return replace(_check_jobs(everything), sweep_dir=_sweep_dir(cfg))


def composed_jobs(argv: Sequence[str], *, multirun: bool = False) -> Iterator[tuple[str, list[str], Resolved]]:
    """Yield each configuration that `check_overrides` has passed: its swept values, its overrides, its settings.

    A sweep that an experiment requests is included. Repeats are not.
    """
    parsed, _ = parse_overrides(argv)
    with hydra_session(parsed):
        cfg = compose_config([next(_lines(override)) for override in parsed])
        if multirun or str(cfg.hydra.mode).endswith("MULTIRUN"):
            parsed = _with_sweeper_params(parsed, cfg)
        values = [list(_lines(override)) for override in parsed]
        for job in itertools.product(*values):
            labels = [line for line, lines in zip(job, values, strict=True) if len(lines) > 1]
            yield " ".join(labels), list(job), _compose_job(job)


def _repeats(resolved: Resolved) -> int:
    experiment = resolved.settings.experiment
    return experiment.repeats if experiment.repeat is None else 1


def _sweep_dir(cfg: DictConfig) -> Path:
    """The folder of the sweep, with the present time if its name has one."""
    return Path(str(OmegaConf.select(cfg, "hydra.sweep.dir", throw_on_missing=True)))


def _stop_at(problems: list[str]) -> None:
    if problems:
        raise SettingsError(problems)


def _with_sweeper_params(overrides: list[Override], cfg: DictConfig) -> list[Override]:
    """The overrides that an experiment requests, then the given ones; the last override of a key wins."""
    params = cfg.hydra.sweeper.get("params") or {}
    lines = [f"{key}={value}" for key, value in params.items()]
    asked, problems = parse_overrides(lines)
    _stop_at(problems)
    by_key = {override.get_key_element(): override for override in [*asked, *overrides]}
    return list(by_key.values())


def _lines(override: Override) -> Iterator[str]:
    """The override with each of its values, one line for each."""
    if override.is_sweep_override() and override.is_discrete_sweep():
        for value in override.sweep_string_iterator():
            yield f"{override.get_key_element()}={value}"
    else:
        yield override.input_line or ""


def _check_jobs(overrides: list[Override]) -> Jobs:
    values = [list(_lines(override)) for override in overrides]
    combinations = math.prod(len(lines) for lines in values)
    if combinations <= MOST_COMBINATIONS:
        jobs = [list(job) for job in itertools.product(*values)]
    else:
        base = [lines[0] for lines in values]
        jobs = [base] + [
            [*base[:place], line, *base[place + 1 :]] for place, lines in enumerate(values) for line in lines[1:]
        ]
    problems: list[str] = []
    repeats: set[int] = set()
    for job in jobs:
        labels = [line for line, lines in zip(job, values, strict=True) if len(lines) > 1]
        try:
            repeats.add(_repeats(_compose_job(job)))
        except SettingsError as error:
            where = f"{' '.join(labels)}: " if labels else ""
            problems += [f"{where}{problem}" for problem in error.problems]
    _stop_at(problems)
    given = {override.key_or_group: lines for override, lines in zip(overrides, values, strict=True)}
    named = [key for key, lines in given.items() if len(lines) > 1 and not any("/" in line for line in lines)]
    if sum(max(len(line.encode()) + 1 for line in given[key]) for key in named) > _LONGEST_FOLDER_NAME:
        named = []
    if len(repeats) > 1:
        _stop_at(["experiment.repeats: one value is expected here, not several"])
    swept = tuple(tuple(lines) for lines in values if len(lines) > 1)
    unnamed = tuple(key for key in given if key not in named)
    return Jobs(combinations, tuple(named), unnamed, swept, repeats.pop())


def _compose_job(overrides: Sequence[str]) -> Resolved:
    """One job's settings; needs an open `hydra_session`. overrides: one value each."""
    cfg = compose_config(overrides)
    return _resolve(cfg, cfg.hydra)


def _resolve(cfg: DictConfig, hydra: DictConfig) -> Resolved:
    lines = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(lines, list)
    parsed = OverridesParser.create().parse_overrides(lines)
    choices = {str(group): option for group, option in hydra.runtime.choices.items()}
    given: dict[str, object] = {}
    for override in parsed:
        if override.key_or_group not in choices and not override.is_hydra_override():
            given[override.key_or_group] = override.value()
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    named = {override.key_or_group for override in parsed}
    # An experiment chooses options, too; they cannot be distinguished from the defaults of the groups.
    chosen = named if choices.get("experiment") is None else choices.keys()
    layers = _choice_layers(cfg, choices, folders, chosen)
    file = _select(cfg, "config_file")
    overrides = {path: _select(cfg, path) for path in flatten(given, OVERRIDE)}
    return load_settings(None if file is None else str(file), overrides=overrides, choices=layers)


def _select(cfg: DictConfig, path: str) -> object:
    try:
        value = OmegaConf.select(cfg, path)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise SettingsError([f"{path}: {hydra_message(error)}"]) from None


def _choice_layers(
    cfg: DictConfig, choices: Mapping[str, object], folders: Sequence[Path], chosen: Set[str]
) -> list[Layer]:
    """The values that each option sets, one layer each; an experiment lies above the other groups.

    An option that was not chosen gives only the values that differ from the defaults of their keys: others give way.
    """
    layers: list[Layer] = []
    for group in sorted(choices, key=lambda name: name == "experiment"):
        option = choices[group]
        if isinstance(option, str) and not group.startswith("hydra/"):
            name, _, package = group.partition("@")
            values = {
                path: _select(cfg, path) if "${" in str(value) else value
                for path, value in _option_values(name, option, package, folders).items()
            }
            layer = flatten(values, Origin("group", f"{group}={option}"))
            layers.append(
                layer if group in chosen else {path: given for path, given in layer.items() if _moves(path, given)}
            )
    return layers


def _moves(path: str, given: Given) -> bool:
    """True if the value differs from the key's default."""
    key = find_key(path)
    return key is None or given.value != key.default


def _option_values(group: str, option: str, package: str, folders: Sequence[Path]) -> dict[str, object]:
    """The values of the option's file, by dotted path, over those of the files of its group that it builds on."""
    file = next((path for folder in folders if (path := folder / group / f"{option}.yaml").is_file()), None)
    if file is None:
        return {}
    content = OmegaConf.to_container(OmegaConf.load(file))
    if not isinstance(content, dict):
        return {}
    if not package:
        header = re.search(r"^# *@package +(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        package = header[1] if header else "_group_"
    package = package.replace("_global_", "").replace("_group_", group.replace("/", ".")).strip(".")
    values: dict[str, object] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_" and not entry.startswith("/"):
            values.update(_option_values(group, entry, package, folders))
    content.pop("hydra", None)
    prefix = f"{package}." if package else ""
    own = flatten({f"{prefix}{name!s}": value for name, value in content.items()}, OVERRIDE)
    values.update({path: given.value for path, given in own.items()})
    return values
