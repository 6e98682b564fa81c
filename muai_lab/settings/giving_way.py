"""Defaults that give way to values that were set, and state that in their origin."""

from __future__ import annotations

from collections.abc import Set

from muai_lab.settings.lab import LabSettings
from muai_lab.settings.origin import Origin, gave_way
from muai_lab.settings.section import WasSet, value_at, walk, with_default


def give_way(settings: LabSettings, set_paths: Set[str]) -> tuple[LabSettings, dict[str, Origin]]:
    """Return the settings in which no default contradicts a value that was set, and the origins of moved defaults.

    Args:
        set_paths: Dotted paths of the keys that a layer above the defaults set.
    """
    moved: dict[str, Origin] = {}

    def below(prefix: str) -> WasSet:
        return lambda key: prefix + key in set_paths or prefix + key in moved

    for path in [path for path, _ in walk("", settings)]:
        prefix = f"{path}." if path else ""
        section = value_at(settings, path) if path else settings
        for found in section.giving_way(below(prefix)):
            settings = with_default(settings, prefix + found.key, found.value)
            moved[prefix + found.key] = gave_way(prefix + found.to)
    return settings, moved
