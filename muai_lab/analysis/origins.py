"""The origin of each setting of a run, from the comments of its `config.yaml`."""

from __future__ import annotations

import yaml


def read_origins(text: str) -> dict[str, str]:
    """Return the origin of each dotted key: the comment after its value.

    Raises:
        yaml.YAMLError: The text is no YAML.
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
