"""Parts of every settings model: the frozen section, the documented field, checks that span several keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, model_validator

# Validation context of the loader, which runs the checks itself, so that one failed check does not hide the others.
UNCHECKED = {"unchecked": True}


@dataclass(frozen=True, slots=True)
class Conflict:
    """Values that are each valid but contradict each other.

    Attributes:
        keys: The keys concerned, relative to the section that reports the conflict.
        message: The problem and how to mend it.
    """

    keys: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True)
class GivesWay:
    """A default that would contradict a value that was set, and the value that replaces it.

    Attributes:
        key: The key that was not set, relative to the section that reports it.
        value: The value that replaces its default.
        to: The key that was set, relative to the same section.
    """

    key: str
    value: object
    to: str


WasSet = Callable[[str], bool]
"""True for a key, relative to the section, that some layer above the defaults has set."""


@dataclass(frozen=True, slots=True)
class Order:
    """Two numbers of a section, the first of which must not be above the second; null sets no bound.

    If only one was set, the default of the other gives way.

    Attributes:
        mend: The end of the error message if both were set.
        apart: The factor that a default keeps between them.
        strict: Equal values are also an error.
    """

    low: str
    high: str
    mend: str = "lower the one or raise the other"
    apart: float = 1.0
    strict: bool = False

    def conflict(self, section: Section) -> Conflict | None:
        """Return the conflict if the values are not in order."""
        low, high = value_at(section, self.low), value_at(section, self.high)
        if low is None or high is None or low < high or (low == high and not self.strict):
            return None
        relation = "not below" if self.strict else "above"
        message = f"{self.low} ({_shown(low)}) is {relation} {self.high} ({_shown(high)}): {self.mend}"
        return Conflict((self.low, self.high), message)

    def gives_way(self, section: Section, was_set: WasSet) -> GivesWay | None:
        """Return the default that gives way if only one of the two was set and the other is too close to it."""
        low, high = value_at(section, self.low), value_at(section, self.high)
        if low is None or high is None or low * self.apart <= high or was_set(self.low) == was_set(self.high):
            return None
        key, to = (self.high, self.low) if was_set(self.low) else (self.low, self.high)
        value = _as_number(low * self.apart, like=high) if key == self.high else _as_number(high / self.apart, like=low)
        return None if value == value_at(section, key) else GivesWay(key, value, to)


class Section(BaseModel):
    """A frozen group of settings. Types are strict (no "1" for 1, no true for 1); unknown keys are an error.

    A default gives way to what was set: values that follow others do not count as set (`model_fields_set`).
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=False, hide_input_in_errors=True
    )
    orders: ClassVar[tuple[Order, ...]] = ()

    def conflicts(self) -> Iterator[Conflict]:
        """Yield contradictions between keys of this section; overridden to check more than `orders`."""
        yield from (conflict for order in self.orders if (conflict := order.conflict(self)) is not None)

    def giving_way(self, was_set: WasSet) -> Iterator[GivesWay]:
        """Yield the defaults that contradict a value that was set; overridden to move more than `orders` does."""
        yield from (found for order in self.orders if (found := order.gives_way(self, was_set)) is not None)

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if info.context is not UNCHECKED:
            for found in self.giving_way(lambda path: was_set(self, path)):
                name = found.key.partition(".")[0]
                # Straight into the dictionary: the model is frozen, and the key must not count as set.
                self.__dict__[name] = with_default(self, found.key, found.value).__dict__[name]
            messages = [conflict.message for conflict in self.conflicts()]
            if messages:
                raise ValueError("; ".join(messages))
        return self


SectionT = TypeVar("SectionT", bound=Section)


def walk(path: str, section: Section, *, mappings: bool = True) -> Iterator[tuple[str, Section]]:
    """Yield the section and all sections below it with their dotted paths; mappings: also those in open mappings."""
    yield path, section
    prefix = f"{path}." if path else ""
    for name in type(section).model_fields:
        child = getattr(section, name)
        if isinstance(child, Section):
            yield from walk(f"{prefix}{name}", child, mappings=mappings)
        elif isinstance(child, Mapping) and mappings:
            for entry, value in child.items():
                if isinstance(value, Section):
                    yield from walk(f"{prefix}{name}.{entry}", value)


def value_at(section: Section, path: str) -> Any:
    """Return the value of the key at the dotted path below the section."""
    value: Any = section
    for name in path.split("."):
        value = value[name] if isinstance(value, Mapping) else getattr(value, name)
    return value


def with_value(section: SectionT, path: str, value: object) -> SectionT:
    """Return a copy of the section in which the key at the dotted path is set to the value, unchecked."""
    name, _, rest = path.partition(".")
    return section.model_copy(update={name: with_value(getattr(section, name), rest, value) if rest else value})


def with_default(section: SectionT, path: str, value: object) -> SectionT:
    """Return a copy of the section in which the key at the dotted path has another value but does not count as set."""
    name, _, rest = path.partition(".")
    copied = section.model_copy()
    child = getattr(section, name)
    if rest and isinstance(child, Mapping):
        entry, _, below = rest.partition(".")
        copied.__dict__[name] = {**child, entry: with_default(child[entry], below, value)}
    else:
        copied.__dict__[name] = with_default(child, rest, value) if rest else value
    return copied


def was_set(section: Section, path: str) -> bool:
    """True if the key at the dotted path was set, not left at its default."""
    name, _, rest = path.partition(".")
    return name in section.model_fields_set and (not rest or was_set(getattr(section, name), rest))


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _as_number(value: float, *, like: float) -> float:
    return math.ceil(value) if isinstance(like, int) else value


def setting(
    default: Any,
    description: str,
    *,
    unit: str | None = None,
    env: str | None = None,
    extension: bool = False,
    hide_in_errors: bool = False,
    unset_matters: bool = False,
    **constraints: Any,
) -> Any:
    """A documented field of a section.

    Args:
        default: The default value.
        description: The meaning of the key, as in the reference page.
        unit: Unit of the number, for people.
        env: Short environment variable, accepted besides the systematic one.
        extension: The key is ours, not the specification's.
        hide_in_errors: Error texts never show its value: people paste secrets into such a key.
        unset_matters: "Not set" differs from "set to the default", so a written file leaves the key out if no layer
            had set it.
        **constraints: As for `pydantic.Field` (`ge`, `le`, ...).
    """
    notes: dict[str, str | bool | None] = {
        "unit": unit,
        "env": env,
        "extension": extension,
        "hide_in_errors": hide_in_errors,
        "unset_matters": unset_matters,
    }
    return Field(
        default,
        description=description,
        json_schema_extra={name: value for name, value in notes.items() if value},
        **constraints,
    )


def check_http_url(value: str) -> str:
    """Accept only an absolute http or https address. The message never holds the address, which may be a secret."""
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or any(character.isspace() for character in value):
        raise ValueError("expected an address such as http://host:port/path (http or https)")
    return value


def check_plain_url(value: str) -> str:
    """Accept only an http or https address without credentials in it."""
    check_http_url(value)
    if "@" in urlsplit(value).netloc:
        raise ValueError("credentials do not belong in this address")
    return value


def check_otlp_endpoint(value: str) -> str:
    """Accept only an http or https address, or a bare `host:port`, which means plaintext."""
    return check_plain_url(value if "://" in value else f"http://{value}") and value


def _check_secret_url(value: SecretStr) -> SecretStr:
    check_http_url(value.get_secret_value())
    return value


def _check_path(value: str) -> str:
    if not value.startswith("/") or any(character.isspace() or character in "?#" for character in value):
        raise ValueError("expected a path that starts with /, without spaces, ? or #")
    return value


def _check_name(value: str) -> str:
    if not value or value != value.strip():
        raise ValueError("expected a name that is not empty and has no spaces around it")
    return value


def _check_unique(values: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"named more than once: {', '.join(twice)}")
    return values


Name = Annotated[str, AfterValidator(_check_name)]
HttpPath = Annotated[str, AfterValidator(_check_path)]
PlainUrl = Annotated[str, AfterValidator(check_plain_url)]
OtlpEndpoint = Annotated[str, AfterValidator(check_otlp_endpoint)]
SecretUrl = Annotated[SecretStr, AfterValidator(_check_secret_url)]
# YAML and overrides give lists: any sequence becomes a tuple, its items stay strict.
Unique = AfterValidator(_check_unique)
AnySequence = Field(strict=False)
