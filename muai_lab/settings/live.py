"""Changes of the running system: which keys can change without loading an engine anew, and what makes one valid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from muai_lab.errors import SettingsError
from muai_lab.settings.catalogue import find_key, keys_by_path, sections
from muai_lab.settings.nearest import did_you_mean, nearest_path
from muai_lab.settings.schema import OptimizationSettings

LIVE_SECTIONS = ("batcher", "cache", "tuner")
_LIVE_PREFIXES = tuple(f"optimization.{section}." for section in LIVE_SECTIONS)
_MOST_PROBLEMS = 5  # that one error names: to look for names that resemble a wrong one takes milliseconds
_FIXED = {
    "optimization.batcher.enabled": "it decides how many slots the engine is opened with",
    "optimization.batcher.max_slots": "the engine was opened with that many slots",
}


def changed(optimization: OptimizationSettings, changes: Mapping[str, Any]) -> OptimizationSettings:
    """The settings with `changes` laid over them, shaped like the `optimization` section: `{"batcher": {…}, …}`.

    Raises SettingsError with the first problems; then nothing of it may be applied.
    """
    problems: list[str] = []
    updates: dict[str, dict[str, object]] = {}
    leaves = list(_leaves("optimization", changes))
    for place, (path, value) in enumerate(leaves):
        problem, checked = _check(path, value)
        if problem is not None:
            problems.append(problem)
            if len(problems) == _MOST_PROBLEMS and place + 1 < len(leaves):
                problems[-1] += f"; {len(leaves) - place - 1} more were not checked"
                break
        else:
            _, section, name = path.split(".")
            updates.setdefault(section, {})[name] = checked
    if problems:
        raise SettingsError(problems)
    sections_now = {name: getattr(optimization, name).model_copy(update=values) for name, values in updates.items()}
    for name, section in sections_now.items():
        problems += [f"optimization.{name}: {conflict.message}" for conflict in section.conflicts()]
    wanted = optimization.model_copy(update=sections_now)
    problems += [f"optimization: {conflict.message}" for conflict in wanted.conflicts()]
    if problems:
        raise SettingsError(problems)
    return wanted


def live_view(optimization: OptimizationSettings) -> dict[str, Any]:
    """The sections that can be changed while serving, as plain data."""
    return {name: getattr(optimization, name).model_dump(mode="json") for name in LIVE_SECTIONS}


@cache
def _live_paths() -> tuple[str, ...]:
    """The keys that are worth a hint; to compare a name with all keys would take ten times as long."""
    return tuple(path for path in keys_by_path() if path.startswith(_LIVE_PREFIXES) and path not in _FIXED)


def _leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and path in sections():
        for name, item in value.items():
            yield from _leaves(f"{path}.{name}", item)
    else:
        yield path, value


def _check(path: str, value: object) -> tuple[str | None, object]:
    if path in sections():
        return f"{path}: expected a section with keys below it", None
    key = find_key(path)
    if key is None:
        return f"{path}: no such key{did_you_mean(nearest_path(path, _live_paths()))}", None
    if path in _FIXED:
        return (
            f"{path} cannot be changed while serving, since {_FIXED[path]}: start the server with another value",
            None,
        )
    if path.split(".")[1] not in LIVE_SECTIONS:
        live = ", ".join(LIVE_SECTIONS)
        return f"{path} cannot be changed while serving (only {live} can): start the server with another value", None
    try:
        return None, key.check(value)
    except ValueError as error:
        return f"{path} = {key.shown(value)}: {error}", None
