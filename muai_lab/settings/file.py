"""Settings from a YAML file, each with the line that set it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from muai_lab.errors import SettingsError
from muai_lab.settings.catalogue import ENVIRONMENT_PREFIXES, find_key, has_keys_below, sections
from muai_lab.settings.nearest import did_you_mean, nearest
from muai_lab.settings.origin import Given, Layer, Origin

OPTIMIZATION_FILE = Path("config/optimization.yaml")
SYSTEM_FILE = Path("config/system.yaml")
FILE_SECTIONS = tuple(ENVIRONMENT_PREFIXES)

_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; numbers such as 1e3 are numbers, as in YAML 1.2 (YAML 1.1 has them as strings)."""


def understand_exponents(yaml_class: type[yaml.SafeLoader | yaml.SafeDumper]) -> None:
    """Teach a loader to read 1e3 as a number, or a dumper to quote the string "1e3"."""
    pattern = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
    yaml_class.add_implicit_resolver("tag:yaml.org,2002:float", pattern, list("-+0123456789"))


understand_exponents(_Loader)


def default_file() -> Path | None:
    """Return the file that is read if none is named, relative to the current folder; None if there is none."""
    return next((path for path in (OPTIMIZATION_FILE, SYSTEM_FILE) if path.exists()), None)


def read_file(path: Path) -> tuple[Layer, list[str]]:
    """Return the values that the file sets, and the problems of its structure.

    A top-level section other than `optimization` and `monitoring` is an error, except in a file named `system.yaml`:
    it belongs to the whole system.

    Raises:
        SettingsError: The file is missing, unreadable, or no valid YAML.
    """
    loader = _Loader(_text(path))
    try:
        return _Reader(path, loader).read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise SettingsError([f"{path}, {where}: not valid YAML: {what}"]) from None
    except RecursionError:
        raise SettingsError([f"{path}: not valid YAML: nested too deeply"]) from None
    finally:
        loader.dispose()


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise SettingsError([f"configuration file {path} does not exist"]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise SettingsError([f"{path}, line {line}, column {column}: not valid YAML: not UTF-8 text"]) from None
    except OSError as error:
        raise SettingsError([f"configuration file {path} cannot be read: {error.strerror}"]) from None
    forbidden = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if forbidden:
        line = text.count("\n", 0, forbidden.start()) + 1
        column = forbidden.start() - text.rfind("\n", 0, forbidden.start())
        raise SettingsError([f"{path}, line {line}, column {column}: not valid YAML: unprintable character"])
    return text


class _Reader:
    """A walk of the composed nodes, so that every key keeps its line."""

    def __init__(self, path: Path, loader: _Loader) -> None:
        self.path = path
        self.loader = loader
        self.layer: dict[str, Given] = {}
        self.problems: list[str] = []

    def read(self) -> tuple[Layer, list[str]]:
        root = self.loader.get_single_node()
        if root is None or root.tag == _NULL:
            return {}, []
        if not isinstance(root, yaml.MappingNode):
            return {}, [f"{self._where(root)}: expected the sections {' and '.join(FILE_SECTIONS)}"]
        for key_node, value_node in self._pairs(root):
            name = key_node.value
            if name in FILE_SECTIONS:
                self._read(name, key_node, value_node)
            elif self.path.name != SYSTEM_FILE.name:
                hint = did_you_mean(nearest(name, FILE_SECTIONS)) or (
                    f"; valid are {' and '.join(FILE_SECTIONS)} (a file named {SYSTEM_FILE.name} may hold others too)"
                )
                self.problems.append(f"{name} ({self._where(key_node)}): no such section{hint}")
        return self.layer, self.problems

    def _read(self, path: str, name: yaml.ScalarNode, node: yaml.Node) -> None:
        """Take the value at the path, or the values of the keys below it."""
        if not has_keys_below(path):
            self._give(path, node, self._where(node if find_key(path) is not None else name))
        elif not isinstance(node, yaml.MappingNode):
            if node.tag != _NULL:
                self._give(path, node, self._where(node))
        elif not _is_placeholder(node):
            for key_node, value_node in self._pairs(node):
                # A dot in a key does not lead into a section.
                child = key_node.value.replace(".", "\\.") if path in sections() else key_node.value
                self._read(f"{path}.{child}", key_node, value_node)

    def _give(self, path: str, node: yaml.Node, where: str) -> None:
        try:
            value = self.loader.construct_object(node, deep=True)
        except ValueError:
            # Such as `!!int abc`. The text of the error would hold the value, which may be a secret.
            self.problems.append(f"{path} ({where}): the value does not fit its YAML tag")
            return
        self.layer[path] = Given(value, Origin("file", where))

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """Keys and values of a mapping. Merge keys (`<<`) are followed; a key given twice is a problem."""
        seen: dict[str, int] = {}
        merged: list[tuple[yaml.ScalarNode, yaml.Node]] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in sources:
                    if isinstance(source, yaml.MappingNode) and source is not node:
                        merged += self._pairs(source)
            elif not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(f"{self._where(key_node)}: a key must be a plain name")
            elif key_node.value in seen:
                self.problems.append(
                    f"{key_node.value} ({self._where(key_node)}): given twice, first in line {seen[key_node.value]}"
                )
            else:
                seen[key_node.value] = key_node.start_mark.line + 1
                yield key_node, value_node
        for key_node, value_node in merged:
            if key_node.value not in seen:
                seen[key_node.value] = key_node.start_mark.line + 1
                yield key_node, value_node

    def _where(self, node: yaml.Node) -> str:
        return f"{self.path}:{node.start_mark.line + 1}"


def _is_placeholder(node: yaml.MappingNode) -> bool:
    """True if the section is written `{...}`, the specification's abbreviation: it sets nothing."""
    return len(node.value) == 1 and node.value[0][0].value == "..." and node.value[0][1].tag == _NULL
