"""Resolution of the layers to one frozen tree: override > group choice > environment > file > default."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from muai_lab.errors import SettingsError
from muai_lab.settings.catalogue import (
    Branch,
    Key,
    VariantBranch,
    branch_of,
    catalogue,
    find_key,
    has_keys_below,
    keys_by_path,
    sections,
    show,
)
from muai_lab.settings.choices import applicable_key, implied_kinds, kind_in, kinds_with, node_at
from muai_lab.settings.environment import read_environment
from muai_lab.settings.file import default_file, read_file
from muai_lab.settings.giving_way import give_way
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.nearest import did_you_mean, nearest, nearest_path
from muai_lab.settings.origin import DEFAULT, LAYERS, OVERRIDE, Given, Layer, Origin
from muai_lab.settings.section import UNCHECKED, walk


@dataclass(frozen=True, slots=True)
class ResolvedSetting:
    """One resolved setting."""

    key: Key
    value: object
    origin: Origin


@dataclass(frozen=True, slots=True)
class Resolved:
    """The frozen tree, and the origin of each of its values.

    Attributes:
        file: The configuration file that was read, None without one.
        origins: The origin of every key that a layer above the defaults set, and of every default that gave way to
            one, by dotted path.
    """

    settings: LabSettings
    file: Path | None
    origins: Mapping[str, Origin]

    def origin(self, path: str) -> Origin:
        """Return the origin of a key; for an open mapping with entries from several layers, the highest of them."""
        if path in self.origins:
            return self.origins[path]
        entries = [origin for name, origin in self.origins.items() if name.startswith(f"{path}.")]
        return max(entries, key=lambda origin: LAYERS.index(origin.layer), default=DEFAULT)

    def entries(self, under: str = "") -> Iterator[ResolvedSetting]:
        """Yield every setting below the section `under`, in the order of the schema, without keys that do not apply."""
        for key, value in _leaves(catalogue(), self.settings):
            if not under or key.path == under or key.path.startswith(f"{under}."):
                yield ResolvedSetting(key, value, self.origin(key.path))


def load_settings(
    config_file: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    choices: Sequence[Layer] = (),
) -> Resolved:
    """Resolve all layers into one valid tree.

    Args:
        config_file: The file to read. None looks for config/optimization.yaml, then for the sections in
            config/system.yaml, in the current folder.
        environ: None means the process's own environment.
        overrides: Values by dotted path. A section's path with a mapping sets the keys below it.
        choices: Layers of configuration-group options, lowest first.

    Raises:
        SettingsError: Every problem of every layer, also of values that a higher layer hides.
    """
    given = flatten(overrides or {}, OVERRIDE)
    named = given.get("config_file")
    if config_file is None and named is not None and isinstance(named.value, str):
        config_file = named.value
    path = Path(config_file) if config_file is not None else default_file()
    problems: list[str] = []
    from_file: Layer = {}
    if path is not None:
        try:
            from_file, problems = read_file(path)
        except SettingsError as error:
            problems = list(error.problems)
    from_environment, more = read_environment(os.environ if environ is None else environ)
    problems += more
    if config_file is not None and not any("config_file" in layer for layer in choices):
        given.setdefault("config_file", Given(str(config_file), OVERRIDE))
    return _resolve([from_file, from_environment, *choices, given], path, problems)


def flatten(values: Mapping[str, object], origin: Origin) -> dict[str, Given]:
    """Return a layer from values by dotted path; a mapping at a section's path sets the keys below it."""
    layer: dict[str, Given] = {}
    for path, value in values.items():
        if isinstance(value, Mapping) and has_keys_below(path):
            layer |= flatten({f"{path}.{name}": item for name, item in value.items()}, origin)
        elif value is not None or path not in sections():
            layer[path] = Given(value, origin)
    return layer


def _resolve(layers: Sequence[Layer], file: Path | None, problems: list[str]) -> Resolved:
    merged: dict[str, Given] = {}
    for layer in layers:
        problems += [_unknown_key(path, given) for path, given in layer.items() if find_key(path) is None]
        _put(layer, merged)
    merged.update(implied_kinds(merged))
    values, invalid = _check(merged, problems)
    problems += _hidden_problems(layers, merged)
    settings = LabSettings.model_validate(_build(catalogue(), values), context=UNCHECKED)
    settings, moved = give_way(settings, values.keys())
    origins = {**{path: merged[path].origin for path in values}, **moved}
    problems += _conflicts(settings, origins, invalid)
    if problems:
        raise SettingsError(list(dict.fromkeys(problems)))
    return Resolved(settings, file, origins)


def _unknown_key(path: str, given: Given) -> str:
    if path in sections():
        return f"{path} ({given.origin}): expected a section with keys below it"
    section, _, name = path.rpartition(".")
    above = sections().get(section)
    if isinstance(above, Branch):
        matches = [f"{section}.{match}" for match in nearest(name, above.children)]
        hint = did_you_mean(matches) or f"; valid are {', '.join(above.children)}"
    else:
        hint = did_you_mean(nearest_path(path, keys_by_path()))
    return f"{path} ({given.origin}): no such key{hint}"


def _put(layer: Layer, merged: dict[str, Given]) -> None:
    """Lay `layer` over `merged`. If it changes the kind of a choice, values of lower layers for the old kind go."""
    for path, section in sections().items():  # an outer choice comes before those inside it
        choice = node_at(path, merged)[0] if isinstance(section, VariantBranch) else None
        if isinstance(choice, VariantBranch):
            discriminator = f"{path}.{choice.discriminator}"
            if discriminator in layer and kind_in(choice, merged) != layer[discriminator].value:
                for name in [name for name in merged if name.startswith(f"{path}.")]:
                    del merged[name]
    merged.update({path: given for path, given in layer.items() if find_key(path) is not None})


def _check(merged: Mapping[str, Given], problems: list[str]) -> tuple[dict[str, object], set[str]]:
    """Return the values that are valid by themselves, and the paths of the others, whose problems are added."""
    values: dict[str, object] = {}
    invalid: set[str] = set()
    entries: dict[str, dict[str, Given]] = {}
    for path, given in merged.items():
        key, choice = applicable_key(path, merged)
        if key is None:
            assert choice is not None, "only the kind of a choice takes a key away"
            kind = kind_in(choice, merged)
            problems.append(
                f"{path} ({given.origin}): does not apply to {choice.discriminator} {kind}{_fits(choice, path)}"
            )
            invalid.add(path)
            continue
        if key.kind == "sections" and path != key.path:
            entries.setdefault(key.path, {})[path] = given
            continue
        try:
            values[path] = check_value(key, path, given)
        except ValueError as error:
            problems.append(str(error))
            invalid.add(path)
    for path, parts in entries.items():
        wrong = list(_section_problems(path, parts))
        if wrong:
            problems += wrong
            invalid.update([path, *parts])
        else:
            values.update({name: given.value for name, given in parts.items()})
    return values, invalid


def _fits(choice: VariantBranch, path: str) -> str:
    """The kinds to which the key belongs: the end of the message that it does not apply."""
    kinds = kinds_with(choice, {path.removeprefix(f"{choice.path}.").partition(".")[0]})
    return f", but to {', '.join(kinds)}: set {choice.path}.{choice.discriminator}" if kinds else ""


def _section_problems(path: str, entries: Mapping[str, Given]) -> Iterator[str]:
    """The problems of the entries of an open mapping of sections, which can be checked only together."""
    data = _nested({name.removeprefix(f"{path}."): given.value for name, given in entries.items()})
    try:
        keys_by_path()[path].adapter().validate_python(data)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            name = ".".join([path, *_names_in(data, detail["loc"])])
            origin = entries[name].origin if name in entries else next(iter(entries.values())).origin
            shown = f" = {show(entries[name].value)}" if name in entries else ""
            yield f"{name}{shown} ({origin}): {detail['msg'].removeprefix('Value error, ')}"


def _names_in(data: object, location: Sequence[int | str]) -> Iterator[str]:
    """The keys in a pydantic location, without the kinds of unions, which it also names."""
    for place, name in enumerate(location):
        if isinstance(data, Mapping) and name in data:
            data = data[name]
            yield str(name)
        elif place == len(location) - 1 and isinstance(data, Mapping):
            yield str(name)  # a key that is missing


def _nested(flat: Mapping[str, object]) -> dict[str, object]:
    """Dotted keys as nested mappings."""
    data: dict[str, Any] = {}
    for path, value in flat.items():
        *above, name = path.split(".")
        inner = data
        for step in above:
            below = inner.setdefault(step, {})
            if not isinstance(below, dict):
                below = inner[step] = {}
            inner = below
        inner[name] = value
    return data


def check_value(key: Key, path: str, given: Given) -> object:
    """Return the valid form of one value. Raises ValueError, which names key, value, origin and the expected form."""
    try:
        if path == key.path:
            return key.check(given.value)
        _check_entry(key, path.removeprefix(f"{key.path}."), given.value)
        return given.value
    except ValueError as error:
        shown = "(value not shown)" if key.hidden else f"= {key.shown(given.value)}"
        raise ValueError(f"{path} {shown} ({given.origin}): {error}") from None


def _check_entry(key: Key, name: str, value: object) -> None:
    """Check one entry of an open mapping."""
    try:
        key.check({name: value})
    except ValueError:
        if isinstance(value, str):
            raise
        raise ValueError("expected a string") from None


def _hidden_problems(layers: Sequence[Layer], merged: Mapping[str, Given]) -> Iterator[str]:
    """Invalid values of lower layers that a higher layer hides, and that would otherwise appear later."""
    for layer in layers:
        for path, given in layer.items():
            key = find_key(path)
            if key is not None and merged.get(path) is not given and not _depends_on_a_choice(path):
                try:
                    check_value(key, path, given)
                except ValueError as error:
                    yield str(error)


def _depends_on_a_choice(path: str) -> bool:
    names = path.split(".")
    return any(isinstance(sections().get(".".join(names[:end])), VariantBranch) for end in range(1, len(names)))


def _build(group: Branch, values: Mapping[str, object]) -> dict[str, object]:
    """Nested data for the models with only the values that were set, which `model_fields_set` then records."""
    data: dict[str, object] = {}
    for name, child in group.children.items():
        if isinstance(child, Key):
            if child.path in values:
                data[name] = values[child.path]
            elif child.kind in ("mapping", "sections"):
                prefix = f"{child.path}."
                entries = {path.removeprefix(prefix): item for path, item in values.items() if path.startswith(prefix)}
                if entries:
                    data[name] = _nested(entries) if child.kind == "sections" else entries
        elif not any(path.startswith(f"{child.path}.") for path in values):
            continue
        elif isinstance(child, Branch):
            data[name] = _build(child, values)
        else:
            kind = str(values.get(f"{child.path}.{child.discriminator}", child.default_kind))
            same = kind == child.default_kind
            own = _build(child.kinds[kind], values)
            data[name] = {**(child.default.model_dump() if same else {child.discriminator: kind}), **own}
    return data


def _conflicts(settings: LabSettings, origins: Mapping[str, Origin], invalid: set[str]) -> Iterator[str]:
    for path, section in walk("", settings, mappings=False):
        for conflict in section.conflicts():
            paths = {key: f"{path}.{key}" if path else key for key in conflict.keys}
            if invalid.isdisjoint(paths.values()):
                named = ", ".join(f"{key}: {origins.get(full, DEFAULT)}" for key, full in paths.items())
                yield f"{path + ': ' if path else ''}{conflict.message} ({named})"


def _leaves(node: Branch | VariantBranch, section: BaseModel) -> Iterator[tuple[Key, object]]:
    for name, child in branch_of(node, section).children.items():
        value = getattr(section, name)
        if isinstance(child, Key):
            yield child, value
        else:
            yield from _leaves(child, value)
