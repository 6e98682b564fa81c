"""Search spaces from YAML, checked against the catalogue of settings; one error has all problems of a file.

    include: batching                     # another file of the same folder, or several
    parameters:
      optimization.batcher.max_batch_size: {low: 1, high: 64, log: true}
      optimization.batcher.batch_timeout_ms: {low: 0, high: 100, step: 10}
      optimization.onnx.optimization_level: {choices: [basic, extended, all]}
      optimization.batcher.latency_target_ms:
        {low: 5.0, high: 100.0, log: true, when: {optimization.batcher.adaptive_batching: true}}

The type is the key's own. A boolean needs only `{}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from muai_lab.errors import SettingsError
from muai_lab.settings.catalogue import Key, keys_by_path, show
from muai_lab.settings.hydra_groups import SEARCH_SPACES, groups_folder
from muai_lab.settings.nearest import did_you_mean, nearest, nearest_path
from muai_lab.tuning.search_space import Parameter, SearchSpace, Value

_ATTRIBUTES = ("type", "low", "high", "choices", "log", "step", "when")
_NUMBERS = ("int", "float")


def read_search_space(name: str) -> SearchSpace:
    """Read a search space.

    Args:
        name: The name of a file in conf/search_space, or a path.

    Raises:
        SettingsError: It has every problem: no such file, unknown keys (with the nearest), values out of a key's range,
            contradictions, or a space in which nothing can change.
    """
    problems: list[str] = []
    drafts = _read(_find(name), problems, ())
    return _checked(drafts, name, problems)


def space_of(parameters: Mapping[str, Mapping[str, Any]], origin: str = "search space") -> SearchSpace:
    """Return the space of plain data, checked as a file is. origin: Its name in error messages."""
    return _checked({path: _Draft(attributes, origin) for path, attributes in parameters.items()}, origin, [])


@dataclass(frozen=True, slots=True)
class _Draft:
    """The entry of a file for one parameter, not yet checked."""

    attributes: Any
    origin: str


def _find(name: str) -> Path:
    folder = groups_folder() / SEARCH_SPACES
    named = folder / f"{name}.yaml"
    if named.is_file():
        return named
    path = Path(name)
    if path.is_file():
        return path
    offered = sorted(file.stem for file in folder.glob("*.yaml"))
    hint = did_you_mean(nearest(name, offered, limit=1)) or f"; there are {', '.join(offered)}"
    raise SettingsError([f"search space {name}: neither a file nor a name of one in conf/{SEARCH_SPACES}{hint}"])


def _read(path: Path, problems: list[str], included: tuple[Path, ...]) -> dict[str, _Draft]:
    """The parameters of a file over those of the files that it includes."""
    if path in included:
        raise SettingsError([f"search space {path}: includes itself"])
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"search space {path} cannot be read: {error}"]) from None
    except yaml.YAMLError as error:
        raise SettingsError([f"search space {path}: not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(content, dict):
        raise SettingsError([f"search space {path} is empty: list keys under `parameters`"])
    for entry in content:
        if entry not in ("include", "parameters"):
            hint = did_you_mean(nearest(str(entry), ("include", "parameters")))
            problems.append(f"{path}: {entry}: no such entry{hint}; a search space has `include` and `parameters`")
    drafts: dict[str, _Draft] = {}
    includes = content.get("include") or []
    for name in [includes] if isinstance(includes, str) else includes:
        beside = path.parent / f"{name}.yaml"
        drafts |= _read(beside if beside.is_file() else _find(str(name)), problems, (*included, path))
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise SettingsError([f"search space {path}: `parameters` maps dotted paths to what they may be"])
    for name, attributes in parameters.items():
        if attributes is None:
            drafts.pop(str(name), None)  # a null takes an included parameter out again
        else:
            drafts[str(name)] = _Draft(attributes, str(path))
    return drafts


def _checked(drafts: Mapping[str, _Draft], name: str, problems: list[str]) -> SearchSpace:
    parameters = {}
    for path, draft in drafts.items():
        found = _Check(path, draft)
        parameter = found.parameter()
        problems += [f"{draft.origin}: {path}: {problem}" for problem in found.problems]
        if parameter is not None:
            parameters[path] = parameter
    if not drafts:
        problems.append(f"search space {name} is empty: list keys under `parameters`")
    problems += _condition_problems(drafts, parameters)
    if problems:
        raise SettingsError(problems)
    return SearchSpace(tuple(_ordered(parameters)))


class _Check:
    """One parameter against its key."""

    def __init__(self, path: str, draft: _Draft) -> None:
        self.problems: list[str] = []
        self._path = path
        self._attributes = draft.attributes

    def parameter(self) -> Parameter | None:
        """Return the parameter; None after a problem."""
        key = self._key()
        if key is None:
            return None
        attributes = self._attributes
        if not isinstance(attributes, dict):
            self.problems.append("expected attributes such as {low: 1, high: 64} or {choices: [a, b]}")
            return None
        for name in attributes:
            if name not in _ATTRIBUTES:
                hint = did_you_mean(nearest(str(name), _ATTRIBUTES))
                self.problems.append(f"{name}: no such attribute{hint} (valid: {', '.join(_ATTRIBUTES)})")
        stated = attributes.get("type")
        if stated is not None and stated != key.kind:
            self.problems.append(f"the key is of type {key.kind}, not {stated}; `type` may be left out")
        when = attributes.get("when") or {}
        if not isinstance(when, dict):
            self.problems.append("`when` maps dotted paths to the value that they must have")
            when = {}
        conditions = tuple((str(path), value) for path, value in when.items())
        if "choices" in attributes or key.kind not in _NUMBERS:
            return self._choice(key, conditions)
        return self._range(key, conditions)

    def _key(self) -> Key | None:
        key = keys_by_path().get(self._path)
        if key is not None and self._path.startswith("optimization.") and key.kind not in ("list", "mapping"):
            return key
        tunable = [
            path
            for path, known in keys_by_path().items()
            if path.startswith("optimization.") and known.kind not in ("list", "mapping")
        ]
        if key is None:
            self.problems.append(f"no such key{did_you_mean(nearest_path(self._path, tunable))}")
        elif not self._path.startswith("optimization."):
            self.problems.append("only keys of the section optimization can be searched")
        else:
            self.problems.append(f"{key.expected()} cannot be searched")
        return None

    def _choice(self, key: Key, when: tuple[tuple[str, Value], ...]) -> Parameter | None:
        for name in ("low", "high", "log", "step"):
            if name in self._attributes:
                self.problems.append(f"`{name}` does not go with choices")
        default = [True, False] if key.kind == "bool" else list(key.options)
        choices = self._attributes.get("choices", default)
        if not isinstance(choices, list) or not choices:
            self.problems.append("expected `choices`, a list of values that it may take")
            return None
        for choice in choices:
            try:
                key.check(choice)
            except ValueError as error:
                self.problems.append(f"choice {show(choice)}: {error}")
        if len({(type(choice), choice) for choice in choices if not isinstance(choice, list | dict)}) < len(choices):
            self.problems.append("a choice is named twice")
        elif len(choices) == 1:
            self.problems.append(
                f"the only choice is {show(choices[0])}: nothing to search; set it in the configuration"
            )
        return None if self.problems else Parameter(self._path, "choice", choices=tuple(choices), when=when)

    def _range(self, key: Key, when: tuple[tuple[str, Value], ...]) -> Parameter | None:
        attributes = self._attributes
        low, high, step, log = (attributes.get(name) for name in ("low", "high", "step", "log"))
        if key.kind == "float":
            low, high, step = (float(value) if type(value) is int else value for value in (low, high, step))
        for name, bound in (("low", low), ("high", high)):
            if bound is None:
                self.problems.append(f"`{name}` is missing: a number needs low and high, or choices")
                continue
            try:
                key.check(bound)
            except ValueError as error:
                self.problems.append(f"{name} {show(bound)}: {error}")
        if log not in (None, True, False):
            self.problems.append(f"log {show(log)}: expected true or false")
        if self.problems:
            return None
        if low >= high:
            word = "equals" if low == high else "is above"
            self.problems.append(f"low ({low:g}) {word} high ({high:g}): nothing to search")
        if log and low <= 0:
            self.problems.append(f"a logarithmic scale needs low above 0, and it is {low:g}")
        if step is not None:
            if log:
                self.problems.append("`step` does not go with a logarithmic scale")
            if type(step) is not type(low) or step <= 0 or step > high - low:
                self.problems.append(f"step {show(step)}: expected {'an integer' if key.kind == 'int' else 'a number'} "
                                     f"from above 0 to {high - low:g}")  # fmt: skip
        if self.problems:
            return None
        kind = "int" if key.kind == "int" else "float"
        return Parameter(self._path, kind, low=low, high=high, log=bool(log), step=step, when=when)  # type: ignore[arg-type]


def _condition_problems(drafts: Mapping[str, _Draft], parameters: Mapping[str, Parameter]) -> Iterator[str]:
    """Conditions that name no key, can never hold, or go round in a circle."""
    for path, parameter in parameters.items():
        where = f"{drafts[path].origin}: {path}"
        for named, value in parameter.when:
            key = keys_by_path().get(named)
            if key is None or not named.startswith("optimization."):
                tunable = [known for known in keys_by_path() if known.startswith("optimization.")]
                yield f"{where}: when {named}: no such key{did_you_mean(nearest_path(named, tunable))}"
                continue
            try:
                key.check(value)
            except ValueError as error:
                yield f"{where}: when {named} is {show(value)}: {error}"
                continue
            other = parameters.get(named)
            if other is not None and not _reaches(other, value):
                yield f"{where}: when {named} is {show(value)}: the space never gives it that value"
    for path in _circular(parameters):
        yield f"{drafts[path].origin}: {path}: its condition depends on itself"


def _reaches(parameter: Parameter, value: Value) -> bool:
    if parameter.kind == "choice":
        return value in parameter.choices
    return isinstance(value, int | float) and parameter.low <= value <= parameter.high


def _circular(parameters: Mapping[str, Parameter]) -> list[str]:
    return [path for path in parameters if _depends(path, path, parameters, frozenset())]


def _depends(path: str, on: str, parameters: Mapping[str, Parameter], seen: frozenset[str]) -> bool:
    for named, _ in parameters[path].when:
        if named == on:
            return True
        if named in parameters and named not in seen and _depends(named, on, parameters, seen | {named}):
            return True
    return False


def _ordered(parameters: Mapping[str, Parameter]) -> Iterator[Parameter]:
    """Each parameter after those that its condition names; otherwise in the order of the file."""
    given: dict[str, None] = {}

    def visit(path: str) -> Iterator[Parameter]:
        if path in given:
            return
        for named, _ in parameters[path].when:
            if named in parameters:
                yield from visit(named)
        given[path] = None
        yield parameters[path]

    for path in parameters:
        yield from visit(path)
