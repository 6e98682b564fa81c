"""The configuration that ran, as people should see it: without secrets, and with what was changed first."""

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
LEFT_OUT = "a secret, left out"  # how the comment behind such a value in config.yaml begins

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
    """The value of a dotted key as it may be shown: secrets hidden, addresses without user, password and query."""
    if value is None:
        return None
    if _SECRET_NAME.search(key):
        return HIDDEN
    if isinstance(value, str):
        if key.endswith("api_key_env") and not _VARIABLE.fullmatch(value):
            return HIDDEN  # meant to be the name of a variable, but people paste the key itself
        return redacted(value)
    if isinstance(value, Mapping):
        return {name: shown(f"{key}.{name}", entry) for name, entry in value.items()}
    if isinstance(value, Sequence):
        return [shown(key, entry) for entry in value]
    return value


def redacted(text: str) -> str:
    """A text (an error, a command) without what looks like a secret."""
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
    """One setting. default: what it would have been; origin: which layer set it (None where that was not recorded)."""

    key: str
    value: Any
    default: Any
    origin: str | None
    changed: bool


def entries(run: Run) -> list[RecordedSetting]:
    """Every setting of the run in the order of the file; `changed` where it differs from the project's default."""
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
    """The dotted keys in which the runs' configurations differ, with each run's value (secrets hidden)."""
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    return {
        key: [shown(key, config.get(key)) for config in flat]
        for key in keys
        if any(config.get(key) != flat[0].get(key) for config in flat)
    }


def named_sections(changed: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """The keys that differ, without those for which the name of their section stands.

    changed: as `differing` gives it. `workload.name` stands for `workload.prompt_tokens.low` if equal names always come
    with equal values, as they do where `workload=chat,fixed` was swept.
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
    """For each dotted key its last part, or as many parts as tell it apart; an engine's key names the engine.

    A section's name goes by the section: `workload` for `workload.name`.
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
