"""What every settings model is built from: the frozen section, the documented field, checks that span several keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, model_validator

# Validation context of the loader: it runs the checks itself, so that one failed check does not hide the others.
UNCHECKED = {"unchecked": True}


@dataclass(frozen=True, slots=True)
class Conflict:
    """Values that are valid each for itself but not together.

    keys: the keys concerned, relative to the section that reports it. message: what is wrong and how to mend it.
    """

    keys: tuple[str, ...]
    message: str


class Section(BaseModel):
    """A frozen group of settings. Types are strict (no "1" for 1, no true for 1); unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=False, hide_input_in_errors=True
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Check what spans several keys of this section; overridden where there is something to check."""
        yield from ()

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if info.context is not UNCHECKED:
            messages = [conflict.message for conflict in self.conflicts()]
            if messages:
                raise ValueError("; ".join(messages))
        return self


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

    unit: unit of the number, as people read it. env: short environment variable, accepted besides the systematic one.
    extension: the key is ours, not the specification's. hide_in_errors: error texts never show its value (people paste
    secrets into such a key). unset_matters: "not set" means something else than "set to the default", so a written file
    leaves the key out where no layer had set it. constraints: as for `pydantic.Field` (`ge`, `le`, ...).
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
    """Refuse what is not an absolute http or https address. The message never holds the address: it may be a secret."""
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or any(character.isspace() for character in value):
        raise ValueError("expected an address such as http://host:port/path (http or https)")
    return value


def check_plain_url(value: str) -> str:
    """An http or https address without credentials in it."""
    check_http_url(value)
    if "@" in urlsplit(value).netloc:
        raise ValueError("credentials do not belong in this address")
    return value


def check_otlp_endpoint(value: str) -> str:
    """An http or https address, or a bare `host:port` (which means plaintext)."""
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
# YAML and overrides give lists; the tuple itself is taken leniently, its items stay strict.
Unique = AfterValidator(_check_unique)
AnySequence = Field(strict=False)
