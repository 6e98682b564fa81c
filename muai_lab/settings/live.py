"""Changes of the running system: the keys that can change without loading an engine anew."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from muai_lab.settings.changes import with_values
from muai_lab.settings.schema import OptimizationSettings

LIVE_SECTIONS = ("batcher", "cache", "tuner")
_FIXED = {
    "optimization.batcher.enabled": "it decides how many slots the engine is opened with",
    "optimization.batcher.max_slots": "the engine was opened with that many slots",
}


def changed(optimization: OptimizationSettings, changes: Mapping[str, Any]) -> OptimizationSettings:
    """Return the settings of a running system with some of its live keys changed; see `with_values`.

    Raises SettingsError also for a key that is not live; then no change may be applied.
    """
    return with_values(optimization, changes, refusal=_refusal)


def live_view(optimization: OptimizationSettings) -> dict[str, Any]:
    """The sections that can be changed while serving, as plain data."""
    return optimization.model_dump(mode="json", include=set(LIVE_SECTIONS))


def live_changes(optimization: OptimizationSettings) -> dict[str, Any]:
    """The values of all live keys, as changes for another running system."""
    return optimization.model_dump(mode="json", include=_live_keys())


def differs_only_live(one: OptimizationSettings, other: OptimizationSettings) -> bool:
    """True if a server that runs `one` can take `other` without a restart."""
    return one.model_dump(exclude=_live_keys()) == other.model_dump(exclude=_live_keys())


@cache
def _live_keys() -> dict[str, set[str]]:
    """The live keys of each live section."""
    models = {name: type(getattr(OptimizationSettings(), name)) for name in LIVE_SECTIONS}
    return {
        name: {key for key in model.model_fields if f"optimization.{name}.{key}" not in _FIXED}
        for name, model in models.items()
    }


def _refusal(path: str) -> str | None:
    if path in _FIXED:
        return f"cannot be changed while serving, since {_FIXED[path]}: start the server with another value"
    if path.split(".")[1] not in LIVE_SECTIONS:
        live = ", ".join(LIVE_SECTIONS)
        return f"cannot be changed while serving (only {live} can): start the server with another value"
    return None
