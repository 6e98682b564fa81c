"""The layer that set each setting of a run, from the comments in its `config.yaml`."""

from __future__ import annotations

import yaml


def read_origins(text: str) -> dict[str, str]:
    """Return the origin of each dotted key of a `config.yaml`; it is the comment after the value.

    Raises yaml.YAMLError if the text is no YAML.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found: dict[str, str] = {}
    if isinstance(root, yaml.MappingNode):
        _collect(root, "", text.splitlines(), found)
    return found


def _collect(node: yaml.MappingNode, prefix: str, lines: list[str], found: dict[str, str]) -> None:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            _collect(value, f"{path}.", lines, found)
            continue
        mark = value.end_mark
        behind = lines[mark.line][mark.column :].strip() if mark.line < len(lines) else ""
        if behind.startswith("#"):
            found[path] = behind.lstrip("# ")
