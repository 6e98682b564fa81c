"""The identity of a study: trials of anything else must not be mixed into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muai_lab.analysis.frames import flatten
from muai_lab.errors import RunError
from muai_lab.settings.catalogue import show

Identity = Mapping[str, Any]
"""Nested plain data; equal for processes whose trials can be compared."""

_MOST_SHOWN = 12


def check_same(found: Identity, wanted: Identity, name: str) -> None:
    """Compare the identity of a study with the one that is needed now.

    Args:
        found: Of the study.
        wanted: The one that is needed.
        name: Of the study.

    Raises:
        RunError: They differ; the message lists the differences.
    """
    before, now = flatten(found), flatten(wanted)
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if not keys:
        return
    lines = [f"\n  - {key}: {_told(before, key)} in the study, {_told(now, key)} now" for key in keys[:_MOST_SHOWN]]
    more = f"\n  - and {len(keys) - _MOST_SHOWN} more" if len(keys) > _MOST_SHOWN else ""
    raise RunError(
        f"the study {name} was made for something else:{''.join(lines)}{more}\n"
        "Its trials cannot be compared with new ones: ask for the same again, or choose another tuning.study"
    )


def _told(values: Mapping[str, Any], key: str) -> str:
    return show(values[key]) if key in values else "absent"
