"""Partial changes of the `optimization` section: the named keys get other values, all others stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from muai_lab.errors import SettingsError
from muai_lab.settings.catalogue import find_key, keys_by_path, sections
from muai_lab.settings.nearest import did_you_mean, nearest_path
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.settings.section import walk, with_value

_ROOT = "optimization"
_PREFIX = f"{_ROOT}."
_MOST_PROBLEMS = 5  # in one error: the search for names that resemble a wrong one takes milliseconds

Refusal = Callable[[str], str | None]
"""Returns the reason why the key at a dotted path cannot be changed, None if it can."""


def with_values(
    optimization: OptimizationSettings, changes: Mapping[str, Any], refusal: Refusal = lambda path: None
) -> OptimizationSettings:
    """Return a copy of the settings in which the keys of `changes` have other values.

    Only these keys count as set in addition. No default gives way to them: it is a value in force, too.

    Args:
        optimization: Valid settings.
        changes: Values by key, nested (`{"batcher": {"max_batch_size": 16}}`) or dotted
            (`{"batcher.max_batch_size": 16}`). A dotted key may begin with `optimization.`. An open mapping is
            replaced whole.
        refusal: Forbids the change of some keys.

    Raises:
        SettingsError: A key does not exist or is refused, a value is invalid, or values contradict each other. The
            error names at most five problems.
    """
    problems: list[str] = []
    leaves = list(_leaves(_ROOT, changes))
    for place, (path, value) in enumerate(leaves):
        try:
            optimization = with_value(optimization, path.removeprefix(_PREFIX), _checked(path, value, refusal))
        except ValueError as error:
            problems.append(str(error))
            if len(problems) == _MOST_PROBLEMS and place + 1 < len(leaves):
                problems[-1] += f"; {len(leaves) - place - 1} more were not checked"
                break
    if not problems:
        for path, section in walk(_ROOT, optimization):
            problems += [f"{path}: {conflict.message}" for conflict in section.conflicts()]
    if problems:
        raise SettingsError(problems)
    return optimization


def _leaves(section: str, changes: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The changed keys by their full paths, with their values, still to be checked."""
    for name, value in changes.items():
        path = f"{section}.{name.removeprefix(_PREFIX) if section == _ROOT else name}"
        if isinstance(value, Mapping) and path in sections():
            yield from _leaves(path, value)
        else:
            yield path, value


def _checked(path: str, value: object, refusal: Refusal) -> object:
    """The valid form of the value. Raises ValueError with the whole problem."""
    if path in sections():
        raise ValueError(f"{path}: expected a section with keys below it")
    key = find_key(path)
    if key is None:
        known = [other for other in keys_by_path() if other.startswith(_PREFIX) and refusal(other) is None]
        raise ValueError(f"{path}: no such key{did_you_mean(nearest_path(path, known))}")
    reason = refusal(path)
    if reason is not None:
        raise ValueError(f"{path} {reason}")
    if path != key.path:
        raise ValueError(f"{path}: an entry cannot be changed alone; give {key.path} as a whole")
    try:
        return key.check(value)
    except ValueError as error:
        raise ValueError(f"{path} = {key.shown(value)}: {error}") from None
