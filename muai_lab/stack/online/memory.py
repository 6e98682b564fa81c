"""The last good values, kept on disk across restarts."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from muai_lab.files import write_whole
from muai_lab.models.embedded import cache_dir
from muai_lab.settings.live import live_view
from muai_lab.stack.online.knobs import Knob, Values

if TYPE_CHECKING:
    from muai_lab.settings.schema import OptimizationSettings

log = logging.getLogger(__name__)

_FORMAT = 1


class TunerMemory:
    """One file for each model, engine and configuration: values found under another configuration are never used.

    Without it the tuner only has to search again, so a fault of the file or the disk is logged and is no error.
    """

    def __init__(self, model: str, engine: str, configured: OptimizationSettings) -> None:
        directory = configured.tuner.state_directory
        root = cache_dir() / "tuner" if directory is None else Path(directory).expanduser()
        self._key = {"model": model, "engine": engine, "configuration": _fingerprint(configured)}
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{model}-{engine}-{self._key['configuration']}")
        self.path = root / f"{name}.json"

    def load(self) -> Values | None:
        """Return the kept values; None if there are none, or if they cannot be used."""
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("tuner: %s cannot be read, and is ignored: %s", self.path, error)
            return None
        values = _values(document, {"format": _FORMAT, **self._key})
        if values is None:
            log.warning("tuner: %s is not what this server keeps there, and is ignored", self.path)
        return values

    def save(self, values: Values) -> None:
        """Keep the values. A reader sees the old file or the new one, never a part."""
        document = {"format": _FORMAT, **self._key, "values": asdict(values)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(document, indent=1) + "\n")
        except OSError as error:
            log.warning("tuner: the last good values cannot be kept in %s: %s", self.path, error)


def _fingerprint(configured: OptimizationSettings) -> str:
    """Return a short hash over the sections that hold the values, and over the tuner's targets and bounds."""
    sections = live_view(configured)
    for key in ("enabled", "state_directory", "observation_window_seconds", "tuning_interval_seconds"):
        del sections["tuner"][key]  # these change how the tuner searches, not what it finds
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:12]


def _values(document: object, expected: dict[str, object]) -> Values | None:
    if not isinstance(document, dict) or {key: document.get(key) for key in expected} != expected:
        return None
    kept = document.get("values")
    if not isinstance(kept, dict) or kept.keys() != {knob.value for knob in Knob}:
        return None
    if not all(type(value) is int and value >= 0 for value in kept.values()) or kept[Knob.BATCH.value] < 1:
        return None
    return Values(**kept)
