"""The configuration of a run as people see it: without secrets, with the changed settings first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from muai_lab.analysis.frames import Run, flatten
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.schema import ENGINE_NAMES

HIDDEN = "(set, not shown)"
LEFT_OUT = "a secret, left out"  # beginning of the comment after such a value in config.yaml

_SECRET_NAME = re.compile(
    r"(^|[._-])(api_?key|access_?key|secret|password|passwd|token|authorization|credentials?|webhook_url)$", re.I
)
_SECRET_TEXT = re.compile(
    r"(?P<keep>(bearer|basic)\s+|(api[_-]?key|token|secret|password|webhook_url)[\"']?\s*[=:]\s*[\"']?)"
    r"(?P<hide>[^\s\"',;&]+)"
    r"|(?P<bare>\bsk-[\w-]{8,})",
    re.I,
)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_URL = re.compile(r"https?://[^\s\"'<>]+", re.I)


def shown(key: str, value: Any) -> Any:
    """Return the value of a dotted key without secrets; addresses lose user, password and query."""
    if value is None:
        return None
    if _SECRET_NAME.search(key):
        return HIDDEN
    if isinstance(value, str):
        if key.endswith("api_key_env") and not _VARIABLE.fullmatch(value):
            return HIDDEN  # the key expects the name of a variable, but people paste the secret itself
        return redacted(value)
    if isinstance(value, Mapping):
        return {name: shown(f"{key}.{name}", entry) for name, entry in value.items()}
    if isinstance(value, Sequence):
        return [shown(key, entry) for entry in value]
    return value


def redacted(text: str) -> str:
    """Return a text (an error, a command) without anything that looks like a secret."""
    text = _URL.sub(lambda match: _plain_url(match.group()), text)
    return _SECRET_TEXT.sub(lambda match: HIDDEN if match["bare"] else f"{match['keep']}{HIDDEN}", text)


def _plain_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


@dataclass(frozen=True, slots=True)
class RecordedSetting:
    """One setting of a run.

    Attributes:
        key: Dotted key.
        value: Value in the run, without secrets.
        default: The project's default.
        origin: Layer that set the value; None if it was not recorded.
        changed: True if the value differs from the default.
    """

    key: str
    value: Any
    default: Any
    origin: str | None
    changed: bool


def entries(run: Run) -> list[RecordedSetting]:
    """Return every setting of the run, in the order of its file."""
    defaults = flatten(LabSettings().model_dump(mode="json"))
    found = []
    for key, value in flatten(run.config).items():
        default = defaults.get(key)
        origin = run.origins.get(key)
        left_out = (origin or "").startswith(LEFT_OUT)
        changed = left_out or (value != default if key in defaults else origin not in (None, "default"))
        found.append(
            RecordedSetting(key, HIDDEN if left_out else shown(key, value), shown(key, default), origin, changed)
        )
    return found


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the dotted keys in which the runs' configurations differ, with each run's value (secrets hidden)."""
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    return {
        key: [shown(key, config.get(key)) for config in flat]
        for key in keys
        if any(config.get(key) != flat[0].get(key) for config in flat)
    }


def named_sections(changed: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Return the keys that differ, without those that the name of their section represents.

    `workload.name` represents `workload.prompt_tokens.low` if equal names always come with equal values, as in a sweep
    of `workload=chat,fixed`.

    Args:
        changed: Values by key, as returned by `differing`.
    """
    kept = dict(changed)
    for name in [key for key in changed if key.endswith(".name")]:
        section = name.removesuffix("name")
        for key in [key for key in kept if key.startswith(section) and key != name]:
            pairs = {(repr(ours), repr(theirs)) for ours, theirs in zip(kept[name], kept[key], strict=True)}
            if len(pairs) == len({ours for ours, _ in pairs}):
                del kept[key]
    return kept


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return for each dotted key its last part, or as many parts as make it unique; an engine's key names the engine.

    The name of a section is shortened to the section: `workload` for `workload.name`.
    """
    names: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        for length in range(2 if parts[-2:-1] and parts[-2] in ENGINE_NAMES else 1, len(parts) + 1):
            name = ".".join(parts[-length:])
            if sum(other == name or other.endswith(f".{name}") for other in keys) == 1:
                break
        section = key.removesuffix(".name")
        names[key] = name if section == key or section in keys else section
    return names
