"""The A/A history of the machine: the noise between equal runs of earlier comparisons, in a local file.

Every comparison and every sweep with repeats adds a line: the variance of one run for each figure, with its degrees of
freedom, under a key of machine, target and kind of load. A later comparison under the same key uses the lines of other
runs as its prior (see `moderation`). The file may be lost: a line that cannot be read is ignored, and a file that
cannot be written is reported in a note.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muai_lab.analysis.frames import Run
from muai_lab.analysis.key_figures import FIGURES
from muai_lab.analysis.machines import machine_of
from muai_lab.analysis.moderation import Variance
from muai_lab.files import write_whole
from muai_lab.models.embedded import cache_dir

_FILE = "noise_history.jsonl"
_VERSION = 1
_MOST_BYTES = 2_000_000  # about 5,000 comparisons; then the older half is dropped
_LARGEST_VARIANCE = 25.0  # a factor of 150 between equal runs, of no use to a comparison
_MOST_FREEDOM = 1000.0


@dataclass(frozen=True, slots=True)
class Circumstances:
    """The circumstances that noise depends on. machine: A digest. target: Kind, engine or address. load: Its kind."""

    machine: str
    target: str
    load: str


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """Equal runs of one comparison. runs: A digest of each. variances: By the name of the figure."""

    key: Circumstances
    runs: frozenset[str]
    variances: Mapping[str, Variance]

    @property
    def freedom(self) -> float:
        """The largest number of degrees of freedom among its figures."""
        return max((variance.freedom for variance in self.variances.values()), default=0.0)


@dataclass(frozen=True, slots=True)
class NoiseHistory:
    """The history in a file. path: None for a history that is empty and stores nothing."""

    path: Path | None = None
    _entries: tuple[HistoryEntry, ...] = field(default=(), repr=False)

    @classmethod
    def of_user(cls) -> NoiseHistory:
        """Return the history in the cache directory of the user (`MUAI_CACHE_DIR`); empty if there is none yet."""
        return cls.read(cache_dir() / _FILE)

    @classmethod
    def read(cls, path: Path) -> NoiseHistory:
        """Return the history in `path`, without damaged lines and those of other versions."""
        try:
            text = path.read_bytes().decode("utf-8", errors="replace")
        except OSError:
            return cls(path)
        return cls(path, tuple(entry for line in text.splitlines() if (entry := _parsed(line)) is not None))

    def past(self, key: Circumstances | None, figure: str, *, without: Iterable[Run] = ()) -> list[Variance]:
        """Return the variances of a figure under the key, without the runs in `without`; no run counts twice."""
        if not self._entries or key is None:
            return []
        own = {digest_of(run) for run in without}
        known = [one for one in self._entries if one.key == key and figure in one.variances and not one.runs & own]
        return [entry.variances[figure] for entry in _without_overlap(known)]

    def add(self, key: Circumstances | None, runs: Sequence[Run], variances: Mapping[str, Variance]) -> str | None:
        """Append the variances of equal runs; return the reason if they could not be written.

        Runs that are in the history already, or twice in `runs`, add nothing.
        """
        if self.path is None or key is None or not variances:
            return None
        entry = HistoryEntry(key, frozenset(map(digest_of, runs)), variances)
        if len(entry.runs) < len(runs) or any(known.key == key and entry.runs <= known.runs for known in self._entries):
            return None
        try:
            _append(self.path, _line(entry))
        except OSError as error:
            return (
                f"the history of equal runs was not written to {self.path}: {error.strerror or error}; set "
                "MUAI_CACHE_DIR to a directory that can be written"
            )
        return None


NO_HISTORY = NoiseHistory()


def key_of(runs: Sequence[Run]) -> Circumstances | None:
    """Return the key that all these runs share; None if they differ in it, or if there is no run."""
    keys = {_key(run) for run in runs}
    return keys.pop() if len(keys) == 1 else None


def _key(run: Run) -> Circumstances:
    machine = machine_of(run)
    facts = [
        machine.cpu, machine.cores, list(machine.gpus), machine.family, list(machine.limits),
        sorted(machine.instruction_sets or ()), round(machine.memory_bytes / 2**30),
    ]  # fmt: skip
    target = _mapping(run.config.get("target"))
    served = _mapping(run.manifest.get("engine")).get("name")
    where = _digest(target.get("url")) if target.get("kind") == "endpoint" else served
    return Circumstances(_digest(facts), f"{target.get('kind')} {where}", "closed" if run.closed_loop else "open")


def digest_of(run: Run) -> str:
    """Return a short digest of this run alone; it stays the same if the directory is moved or copied."""
    stated = run.manifest
    return _digest([stated.get("started"), stated.get("clock"), stated.get("schedule_hash")])


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _line(entry: HistoryEntry) -> bytes:
    stored = {
        "version": _VERSION,
        "machine": entry.key.machine,
        "target": entry.key.target,
        "load": entry.key.load,
        "runs": sorted(entry.runs),
        "variances": {name: [one.value, one.freedom] for name, one in entry.variances.items()},
    }
    return json.dumps(stored, allow_nan=False).encode() + b"\n"


def _parsed(line: str) -> HistoryEntry | None:
    """The entry of a line; None if the line is damaged, of another version, or has impossible values."""
    try:
        stored = json.loads(line)
    except ValueError:
        return None
    if not isinstance(stored, dict) or stored.get("version") != _VERSION:
        return None
    runs, variances = stored.get("runs"), stored.get("variances")
    if not isinstance(runs, list) or not runs or not isinstance(variances, dict):
        return None
    known = {name: one for name in FIGURES if (one := _variance(variances.get(name))) is not None}
    key = Circumstances(*(str(stored.get(name)) for name in ("machine", "target", "load")))
    return HistoryEntry(key, frozenset(map(str, runs)), known) if known else None


def _variance(stored: object) -> Variance | None:
    if not (isinstance(stored, list) and len(stored) == 2):
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in stored):
        return None
    value, freedom = map(float, stored)
    possible = 0.0 < value <= _LARGEST_VARIANCE and 1.0 <= freedom <= _MOST_FREEDOM
    return Variance(value, freedom) if possible else None


def _without_overlap(entries: Iterable[HistoryEntry]) -> list[HistoryEntry]:
    """The entries with the most degrees of freedom among those that share runs."""
    kept: list[HistoryEntry] = []
    seen: set[str] = set()
    for entry in sorted(entries, key=lambda entry: -entry.freedom):
        if not entry.runs & seen:
            kept.append(entry)
            seen |= entry.runs
    return kept


def _append(path: Path, line: bytes) -> None:
    """Append a line in one write, so that comparisons that end at the same time do not mix their lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _MOST_BYTES:
        _halve(path)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" + line if torn else line)
    finally:
        os.close(descriptor)


def _halve(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    write_whole(path, b"".join(lines[len(lines) // 2 :]))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
