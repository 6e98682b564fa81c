"""Every setting as data, read from the models: path, type, default, range, options, environment names, meaning.

This tree drives the loader, the dumps, the reference page, the example file and Hydra's base nodes.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from muai_lab.settings.lab import LabSettings
from muai_lab.settings.nearest import did_you_mean, nearest
from muai_lab.settings.section import UNCHECKED, Section

ValueKind = Literal["bool", "int", "float", "str", "list", "mapping", "sections"]

ENVIRONMENT_PREFIXES = {"optimization": "MUAI_OPT_", "monitoring": "MUAI_MON_"}
_WORDS: dict[ValueKind, str] = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "list": "a list of strings",
    "mapping": "a mapping from names to strings",
    "sections": "a mapping from names to sections",
}
_SHOWN_CHARACTERS = 80
_KINDS: dict[str, ValueKind] = {
    "boolean": "bool",
    "integer": "int",
    "number": "float",
    "string": "str",
    "array": "list",
}
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Bounds of a number; None for a bound that does not exist."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __str__(self) -> str:
        if self.ge is not None and self.le is not None:
            return f"from {self.ge:g} to {self.le:g}"
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("at least", self.ge),
                ("above", self.gt),
                ("at most", self.le),
                ("below", self.lt),
            )
            if bound is not None
        ]
        return " and ".join(bounds)


@dataclass(frozen=True, slots=True)
class Key:
    """One setting.

    Attributes:
        options: The allowed values; of a list, those of its items; of a number, the words allowed in its place. Empty
            if any value of the type is allowed.
        env_long: Environment variable; None for the lab's own settings.
        env_short: Second name of the variable, None if there is none.
        secret: The value is never shown or written.
        hidden: Error texts do not show the value.
        numbers: The items of the list are numbers.
    """

    path: str
    kind: ValueKind
    default: object
    description: str
    nullable: bool = False
    options: tuple[str, ...] = ()
    range: ValueRange = ValueRange()
    non_empty: bool = False
    unit: str | None = None
    env_long: str | None = None
    env_short: str | None = None
    extension: bool = False
    secret: bool = False
    hidden: bool = False
    unset_matters: bool = False
    numbers: bool = False
    adapter: Callable[[], TypeAdapter[Any]] = field(compare=False, repr=False, kw_only=True)

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def expected(self) -> str:
        """Describe a valid value in words."""
        words = "a list of numbers" if self.numbers else _WORDS[self.kind]
        listed = ", ".join(self.options)
        if self.options and self.kind != "float":
            words = f"a list of {listed}" if self.kind == "list" else f"one of {listed}"
        if self.non_empty:
            words += ", not empty"
        if str(self.range):
            words += f" {self.range}" if self.range.ge is not None and self.range.le is not None else f", {self.range}"
        if self.unit:
            words += f" ({self.unit})"
        if self.options and self.kind == "float":
            words += f", or {listed}"
        return f"{words}, or null" if self.nullable else words

    def check(self, value: object) -> object:
        """Return the valid, immutable form of `value`.

        Raises:
            ValueError: Names what is expected, without the value.
        """
        try:
            return self.adapter().validate_python(value)
        except ValidationError as error:
            raise ValueError(self._explain(value, error)) from None

    def _explain(self, value: object, error: ValidationError) -> str:
        for detail in error.errors(include_url=False, include_input=False):
            if detail["type"] == "value_error":
                return str(detail["ctx"]["error"])
        wrong = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
        matches = [
            match
            for item in wrong
            if isinstance(item, str) and item not in self.options
            for match in nearest(item, self.options, limit=1)
        ]
        return f"expected {self.expected()}{did_you_mean(matches)}"

    def shown(self, value: object) -> str:
        """Return the value in one line for people, without secrets and without credentials in addresses."""
        if self.secret:
            return "null" if value is None else "(set, not shown)"
        return show(value)


@dataclass(frozen=True, slots=True)
class Branch:
    """A section: its children by name, in the order of the specification."""

    path: str
    model: type[Section]
    children: Mapping[str, Key | Branch | VariantBranch]


@dataclass(frozen=True, slots=True)
class VariantBranch:
    """A section whose keys depend on one of them (`discriminator`), such as a length distribution."""

    path: str
    discriminator: str
    kinds: Mapping[str, Branch]
    default: Section
    description: str = ""

    @property
    def default_kind(self) -> str:
        return str(getattr(self.default, self.discriminator))


def branch_of(node: Branch | VariantBranch, section: BaseModel) -> Branch:
    """Return the keys of the section as it is: for a choice, those of its kind."""
    return node if isinstance(node, Branch) else node.kinds[str(getattr(section, node.discriminator))]


def plain(value: object) -> object:
    """Return the value with each section in it as a plain mapping of the keys that were set."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return value


def show(value: object) -> str:
    """Return a value in one line of YAML, shortened to a readable length, without credentials in addresses."""
    if isinstance(value, SecretStr):
        return "(set, not shown)"
    text = json.dumps(plain(value), ensure_ascii=False, default=str)
    text = re.sub(r"://[^/@\s\"]*@", "://***@", text)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


@cache
def catalogue() -> Branch:
    """Return the whole tree of settings."""
    return _group(LabSettings, "", LabSettings())


@cache
def _definitions() -> Mapping[str, Any]:
    """Pydantic's JSON schema of each section, by the name of its model."""
    whole = LabSettings.model_json_schema()
    return {**whole["$defs"], LabSettings.__name__: whole}


def _group(model: type[Section], path: str, default: Section) -> Branch:
    children: dict[str, Key | Branch | VariantBranch] = {}
    for name, info in model.model_fields.items():
        child_path = f"{path}.{name}" if path else name
        annotation = info.annotation
        child_default = getattr(default, name, info.default)
        if isinstance(annotation, type) and issubclass(annotation, Section):
            children[name] = _group(annotation, child_path, child_default)
        elif info.discriminator is not None:
            children[name] = _choice(info, child_path, child_default)
        else:
            schema = _definitions()[model.__name__]["properties"][name]
            children[name] = _key(info, child_path, child_default, schema)
    return Branch(path, model, types.MappingProxyType(children))


def _choice(info: FieldInfo, path: str, default: Section) -> VariantBranch:
    discriminator = str(info.discriminator)
    models = {str(model.model_fields[discriminator].default): model for model in get_args(info.annotation)}
    options = tuple(models)
    kinds = {}
    for kind, model in models.items():
        own_default = default if type(default) is model else model.model_validate({}, context=UNCHECKED)
        group = _group(model, path, own_default)
        own = group.children[discriminator]
        assert isinstance(own, Key)
        adapter = _adapter(Literal[options])
        choosing = replace(own, options=options, default=getattr(default, discriminator), adapter=adapter)
        kinds[kind] = replace(group, children=types.MappingProxyType({**group.children, discriminator: choosing}))
    return VariantBranch(path, discriminator, types.MappingProxyType(kinds), default, info.description or "")


def _key(info: FieldInfo, path: str, default: object, schema: Mapping[str, Any]) -> Key:
    """The key of a field; schema: the field's JSON schema."""
    members = schema.get("anyOf", [schema])
    value, *words = [member for member in members if member.get("type") != "null"]
    items = value.get("items", {})
    kind = _kind(value)
    secret = value.get("format") == "password"
    typed: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    return Key(
        path=path,
        kind=kind,
        default=default,
        description=schema.get("description", ""),
        nullable=len(members) > 1 + len(words),
        options=tuple(option for part in (value, items, *words) for option in _options(part)),
        range=ValueRange(**{name: float(value[bound]) for name, bound in _BOUNDS.items() if bound in value}),
        non_empty=value.get("minItems", 0) > 0,
        unit=schema.get("unit"),
        env_long=_long_name(path),
        env_short=schema.get("env"),
        extension=bool(schema.get("extension")),
        secret=secret,
        hidden=secret or bool(schema.get("hide_in_errors")),
        unset_matters=bool(schema.get("unset_matters")),
        numbers=items.get("type") in ("integer", "number"),
        adapter=_adapter(typed),
    )


def _adapter(typed: Any) -> Callable[[], TypeAdapter[Any]]:
    """The strict check of a type, made when it is first needed: most keys are never set."""
    return cache(partial(TypeAdapter, typed, config=_STRICT))


def _kind(value: Mapping[str, Any]) -> ValueKind:
    if value["type"] != "object":
        return _KINDS[value["type"]]
    entries = value["additionalProperties"].get("$ref", "").rpartition("/")[2]
    return "sections" if "properties" in _definitions().get(entries, {}) else "mapping"


def _options(schema: Mapping[str, Any]) -> Sequence[str]:
    options: Sequence[str] = schema.get("enum", [schema["const"]] if "const" in schema else ())
    return options


def _long_name(path: str) -> str | None:
    section, _, rest = path.partition(".")
    prefix = ENVIRONMENT_PREFIXES.get(section)
    return prefix + rest.replace(".", "_").upper() if prefix else None


def keys_of(node: Key | Branch | VariantBranch) -> Iterator[Key]:
    """Yield all keys below, in order; a key that several kinds of a choice have comes once for each kind."""
    if isinstance(node, Key):
        yield node
        return
    children = node.children if isinstance(node, Branch) else node.kinds
    for child in children.values():
        yield from keys_of(child)


@cache
def keys_by_path() -> Mapping[str, Key]:
    """Return every key by its path; if kinds of a choice share a path, the first of them."""
    keys: dict[str, Key] = {}
    for key in keys_of(catalogue()):
        keys.setdefault(key.path, key)
    return types.MappingProxyType(keys)


@cache
def sections() -> Mapping[str, Branch | VariantBranch]:
    """Return every section by its path, without the kinds of a choice, which share its path."""
    found: dict[str, Branch | VariantBranch] = {}

    def visit(node: Branch | VariantBranch) -> None:
        if node.path:
            found.setdefault(node.path, node)
        children = [node] if isinstance(node, Branch) else list(node.kinds.values())
        for group in children:
            for child in group.children.values():
                if not isinstance(child, Key):
                    visit(child)

    visit(catalogue())
    return types.MappingProxyType(found)


@cache
def mapping_paths() -> tuple[str, ...]:
    """Return the paths of the keys that are open mappings: `PATH.NAME` is valid for any name."""
    return tuple(key.path for key in keys_by_path().values() if key.kind in ("mapping", "sections"))


def has_keys_below(path: str) -> bool:
    """Return True for a section, for an open mapping, and for any path in a mapping whose entries are sections."""
    key = find_key(path)
    if key is None:
        return path in sections()
    return key.kind == "sections" or (key.kind == "mapping" and key.path == path)


def find_key(path: str) -> Key | None:
    """Return the key at a dotted path; for an entry of an open mapping, the key of the mapping."""
    key = keys_by_path().get(path)
    if key is None:
        for prefix in mapping_paths():
            if path.startswith(f"{prefix}."):
                return keys_by_path()[prefix]
    return key
