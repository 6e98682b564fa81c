"""Command-line overrides: their grammar, and the valid names nearest to a mistyped one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from muai_lab.settings.catalogue import catalogue, find_key, keys_by_path, mapping_paths, sections
from muai_lab.settings.hydra_groups import SEARCH_SPACES
from muai_lab.settings.nearest import did_you_mean, nearest, nearest_path


def quoted(text: str) -> str:
    """Return any text as the value of an override.

    A backslash escapes in Hydra only before a quote or at the end, and in OmegaConf only before `${`; elsewhere it
    stands for itself.
    """
    literal = re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: f"{found[1] * 2}{found[2] and chr(92) + found[2]}", literal) + "'"


def parse_overrides(lines: Sequence[str]) -> tuple[list[Override], list[str]]:
    """Parse `key=value` arguments; return the valid ones, and the problems of the others without their values."""
    parser = OverridesParser.create()
    parsed: list[Override] = []
    problems: list[str] = []
    for line in lines:
        key, equals, _ = line.partition("=")
        if line.startswith("-"):
            problems.append(f"{key}: no such option; overrides look like group=option or key=value")
        elif not equals and not line.startswith("~"):
            problems.append(f"{line}: overrides look like group=option or key=value")
        else:
            try:
                parsed.append(_open_mapping(parser.parse_override(line)))
            except HydraException:
                problems.append(f"{key}: the value cannot be read; put it in quotes: '{key}=\"...\"'")
    return parsed, problems


def _open_mapping(override: Override) -> Override:
    """The override with the `++` that Hydra needs for a new entry of an open mapping."""
    line = override.input_line or ""
    opened = with_open_mappings([line])[0]
    return override if opened == line else OverridesParser.create().parse_override(opened)


def with_open_mappings(arguments: Sequence[str]) -> list[str]:
    """Return arguments for Hydra, with the `++` that it needs for a new entry of an open mapping."""
    entries = tuple(f"{path}." for path in mapping_paths())
    return [f"++{argument}" if argument.startswith(entries) and "=" in argument else argument for argument in arguments]


def name_problems(overrides: Sequence[Override], loader: ConfigLoader) -> list[str]:
    """Return a problem for every group, option and key that does not exist, with the nearest valid ones."""
    groups = [group for group in loader.get_group_options("", ObjectType.GROUP) if group != SEARCH_SPACES]
    return [problem for override in overrides for problem in _name_problems(override, groups, loader)]


def _name_problems(override: Override, groups: list[str], loader: ConfigLoader) -> list[str]:
    name = override.key_or_group
    if override.is_hydra_override() or name.startswith("hydra"):
        return []
    if name in groups:
        return _option_problems(override, loader)
    if override.is_delete():
        return [f"~{name}: a setting cannot be taken away, only given another value"]
    if find_key(name) is not None or name in sections():
        return []
    own_groups = [group for group in groups if group != "hydra"]
    matches = nearest(name, own_groups, limit=1) if "." not in name else []
    matches += nearest_path(name, [*keys_by_path(), *sections()])
    top = [path for path in catalogue().children if path not in own_groups]
    hint = did_you_mean(matches[:3]) or f"; groups: {', '.join(own_groups)}; further top-level keys: {', '.join(top)}"
    return [f"{name}: no such group or key{hint}"]


def _option_problems(override: Override, loader: ConfigLoader) -> list[str]:
    group = override.key_or_group
    options = loader.get_group_options(group, ObjectType.CONFIG)
    if override.is_delete():
        return []
    if override.is_sweep_override():
        wanted = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
    else:
        wanted = [override.get_value_element_as_str()]
    listed = ", ".join(option for option in options)
    return [
        f"{group}={option}: no such option{did_you_mean(nearest(option, options, limit=1))} (valid: {listed})"
        for option in wanted
        if option not in options and option != "null" and "/" not in option
    ]
