"""Settings as text: the file that a server runs, the record of a run, the environment of a child process.

Secrets are never written to a file; a child process receives them in its environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import yaml
from pydantic import BaseModel, SecretStr

from muai_lab.settings.catalogue import (
    ENVIRONMENT_PREFIXES,
    Branch,
    Key,
    VariantBranch,
    branch_of,
    catalogue,
    keys_by_path,
    plain,
)
from muai_lab.settings.file import FILE_SECTIONS, understand_exponents
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.resolve import Resolved
from muai_lab.settings.section import value_at

_INDENT = "  "


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper. Strings such as "1e3" stay strings in our loader, and tuples become lists."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quote text with unprintable characters: some of them are line breaks to YAML."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


understand_exponents(_Dumper)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)


def yaml_value(value: object) -> str:
    """Return one value in one line of YAML."""
    written = list(value) if isinstance(value, tuple) else plain(value)
    text = yaml.dump(written, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def dump_optimization_yaml(settings: LabSettings) -> str:
    """Return the `optimization` and `monitoring` sections in the specification's shape, which `serve` runs unchanged.

    Loading the text gives the same settings. A key for which "not set" differs from its default
    (`optimization.cache.max_memory_mb`) is written as a comment if no layer had set it. Secrets are null, with a
    comment that names the variable which restores them.
    """
    tree = catalogue()
    lines = []
    for name in FILE_SECTIONS:
        group = tree.children[name]
        assert isinstance(group, Branch)
        lines += [f"{name}:", *_section_lines(group, getattr(settings, name), _INDENT, _no_comment), ""]
    return "\n".join(lines[:-1]) + "\n"


def dump_config_yaml(resolved: Resolved) -> str:
    """Return the whole tree as YAML, each value with its origin as a comment: the record of a run."""
    header = f"# file: {resolved.file if resolved.file is not None else 'none'}"
    lines = _section_lines(catalogue(), resolved.settings, "", lambda key: str(resolved.origin(key.path)))
    return "\n".join([header, *lines]) + "\n"


def _no_comment(key: Key) -> str:
    return ""


def _section_lines(
    node: Branch | VariantBranch, section: BaseModel, indent: str, comment: Callable[[Key], str]
) -> list[str]:
    lines = []
    for name, child in branch_of(node, section).children.items():
        value = getattr(section, name)
        if isinstance(child, Key):
            lines.append(indent + _key_line(child, value, name in section.model_fields_set, comment(child)))
        else:
            lines += [f"{indent}{name}:", *_section_lines(child, value, indent + _INDENT, comment)]
    return lines


def _key_line(key: Key, value: object, was_set: bool, comment: str) -> str:
    if isinstance(value, SecretStr):
        return f"{key.name}: null  # a secret, left out; {key.env_long} brings it back"
    line = f"{key.name}: {yaml_value(value)}"
    if key.unset_matters and not was_set:
        line = f"# {line} (not set)"
    return f"{line}  # {comment}" if comment else line


def secret_environment(settings: LabSettings) -> dict[str, str]:
    """Return the variables that carry the secrets to a child process, by their systematic names."""
    carried = {}
    for key in keys_by_path().values():
        if key.secret and key.env_long is not None:
            value = value_at(settings, key.path)
            if isinstance(value, SecretStr):
                carried[key.env_long] = value.get_secret_value()
    return carried


def child_environment(settings: LabSettings, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a child process that receives the resolved settings as a file.

    Variables that set settings are removed: the file holds their values already, and they would override it again.
    The secrets, which the file does not hold, are added.

    Args:
        environ: The environment to start from; None means the process's own.
    """
    prefixes = tuple(ENVIRONMENT_PREFIXES.values())
    inherited = os.environ if environ is None else environ
    kept = {name: value for name, value in inherited.items() if not name.startswith(prefixes)}
    return kept | secret_environment(settings)
