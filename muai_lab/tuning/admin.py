"""The client's side of the server's admin call: a running server gets another batcher, cache or online tuner."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from muai_lab.errors import RunError
from muai_lab.settings.live import LIVE_SECTIONS, live_view
from muai_lab.settings.schema import OptimizationSettings

TOKEN_VARIABLE = "MUAI_ADMIN_TOKEN"
_PATH = "/admin/optimization"
_TIMEOUT_S = 60.0
# Keys of the live sections that a running server cannot change, since its slots were opened by them.
_OPENED_WITH = (("batcher", "enabled"), ("batcher", "max_slots"))


class NotLive(RunError):
    """The running server does not take the change; it has to be started with it."""


def differs_only_live(one: OptimizationSettings, other: OptimizationSettings) -> bool:
    """Whether a server that runs `one` can take `other` without a restart."""
    first, second = one.model_dump(), other.model_dump()
    for section in LIVE_SECTIONS:
        mine, theirs = first.pop(section), second.pop(section)
        if any(mine[key] != theirs[key] for name, key in _OPENED_WITH if name == section):
            return False
    return first == second


def reconfigure(url: str, token: str, model: str, optimization: OptimizationSettings) -> None:
    """Apply the live sections of the configuration. Raises NotLive when the server refuses or does not answer."""
    sections: dict[str, dict[str, Any]] = live_view(optimization)
    for section, key in _OPENED_WITH:
        del sections[section][key]
    request = urllib.request.Request(
        f"{url}{_PATH}",
        data=json.dumps({"model": model, "optimization": sections}).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        method="PATCH",
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        raise NotLive(f"the server refuses a change: {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise NotLive(f"the server does not answer the admin call: {error}") from error
