"""A run directory as pandas frames.

run = load_run("runs/2026-01-31/12-00-00")
run.requests                       # one row per request, derived columns in seconds.
run.tokens()                       # one row per gap between two chunks.
run.server_metrics                 # the server's own metrics, on the same clock.
load_runs("multirun/2026-01-31")   # one row per run: summary and configuration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from muai_lab.analysis.chunks import EMPTY_CHUNKS, Chunks, read_chunks
from muai_lab.analysis.metrics import (
    METRICS,
    NS_PER_S,
    arrived_together,
    due_ns,
    itl,
    output_tokens,
    seconds_between,
)
from muai_lab.analysis.origins import read_origins
from muai_lab.analysis.window import due_in_window, window_of
from muai_lab.errors import RunError
from muai_lab.request_record import REQUEST_COLUMNS
from muai_lab.request_status import FAILURES
from muai_lab.slo import Slo, slo_of
from muai_lab.window import Window

_INTEGERS = tuple(column.name for column in REQUEST_COLUMNS if pa.types.is_integer(column.type))
_TEXTS = tuple(column.name for column in REQUEST_COLUMNS if pa.types.is_string(column.type))
_STAMPS = tuple(column.name for column in REQUEST_COLUMNS if column.is_stamp)
SERVER_COLUMNS = ("t_ns", "name", "labels", "value")


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        status: `complete`, `partial` (killed, interrupted or still running) or `failed`. Everything derived from a run
            that is not complete states it: `requests.attrs["status"]`, the summary, the table and the report.
        notes: Files and values that were missing or unreadable, in plain words.
        requests: One row per request, with these columns:
            those of `muai_lab.request_record.REQUEST_COLUMNS`, except lists (`*_ns`: nanoseconds, `Int64`);
            each stamp, `due_s`, and `over_s` (the last stamp of the request) in seconds from the start of the load;
            one column for each of `muai_lab.analysis.metrics.METRICS` (seconds, NaN if missing);
            `tokens` (the server's count, else the client's);
            `together` (the chunks arrived too close together to have times);
            `in_window` (due in the measurement window).
        server_metrics: One row per sample: `t_s` (seconds from the start of the load), `name`, `labels` (JSON),
            `value`.
    """

    path: Path
    status: str
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    origins: Mapping[str, str]
    summary: Mapping[str, Any] | None
    window: Window | None
    requests: pd.DataFrame
    server_metrics: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return self.status == "complete"

    @property
    def started(self) -> str:
        """The start in ISO 8601, which orders runs; empty if it is not stated."""
        return str(self.manifest.get("started") or "")

    @property
    def closed_loop(self) -> bool:
        """True if each client waits for its answer before it sends the next request."""
        return bool((self.manifest.get("load") or {}).get("kind") == "closed")

    @property
    def slo(self) -> Slo | None:
        """The SLO of the run's configuration; None if it had none."""
        return slo_of(self.config)

    @cached_property
    def measured(self) -> pd.DataFrame:
        """The requests that were due in the measurement window."""
        return self.requests[self.requests["in_window"]]

    @cached_property
    def chunks(self) -> Chunks:
        """Every content chunk as flat arrays (`row`: position in `requests`)."""
        path = self.path / "requests.parquet"
        if self.requests.empty or not path.is_file():
            return EMPTY_CHUNKS
        return read_chunks(path, self.requests["tokens"].to_numpy(dtype="float64", na_value=np.nan))

    def tokens(self) -> pd.DataFrame:
        """Return one row per gap between two successive chunks of a request.

        Returns:
            `index` and `status` of the request. `in_window`: the request was due in the window.
            `t_s`: arrival of the later chunk, seconds from the start of the load. `itl_s`: the gap, seconds.
            `tokens`: tokens of the later chunk, NaN if the server did not count them.
            `merged`: that chunk carried several tokens, so the gap stands for several.
        """
        chunks = self.chunks
        later = np.flatnonzero(chunks.row[1:] == chunks.row[:-1]) + 1
        row = chunks.row[later]
        start_ns = self.window.load_start_ns if self.window else 0
        tokens = np.where(chunks.counted[later], chunks.tokens[later], np.nan)
        return pd.DataFrame(
            {
                "index": self.requests["index"].to_numpy()[row],
                "t_s": (chunks.t_ns[later] - start_ns) / NS_PER_S,
                "itl_s": itl(chunks.row, chunks.t_ns),
                "tokens": tokens,
                "merged": tokens > 1,
                "in_window": self.requests["in_window"].to_numpy()[row],
                "status": self.requests["status"].to_numpy()[row],
            }
        )


def load_run(path: str | Path, *, ended: str | None = None) -> Run:
    """Load one run directory. A partial run loads as far as its files go.

    Args:
        path: The directory.
        ended: Status that the run is about to get, for the runner, which analyses a run before it marks it as ended.

    Raises:
        RunError: The directory is no run, or a complete run cannot be read.
    """
    directory = Path(path)
    manifest = _read_manifest(directory)
    stated = ended or str(manifest.get("status", "partial"))
    notes: list[str] = []
    status = stated
    if stated not in ("complete", "failed"):
        status = "partial"
        if stated == "running":
            notes.append("the run never ended: it is still going, or it was killed")
    if manifest.get("error"):
        notes.append(str(manifest["error"]))
    notes += [str(note) for note in manifest.get("notes") or []]
    config, origins = _read_config(directory / "config.yaml")
    records = _read_records(directory / "requests.parquet", must_exist=status == "complete", notes=notes)
    window = window_of(manifest, records, complete=status == "complete")
    requests = _derive(records, window, status)
    server_metrics = _read_server_metrics(directory / "server_metrics.parquet", window, notes)
    summary = _read_json(directory / "summary.json") if (directory / "summary.json").is_file() else None
    return Run(directory, status, manifest, config, origins, summary, window, requests, server_metrics, tuple(notes))


def is_run(path: Path) -> bool:
    """True if a directory holds the manifest of a run."""
    return (path / "manifest.json").is_file()


def find_runs(where: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the run directories at some places.

    Args:
        where: Each a run directory, or a directory (of a sweep) that holds runs at any depth.

    Raises:
        RunError: One of them holds no run.
    """
    places = [Path(where)] if isinstance(where, str | Path) else [Path(place) for place in where]
    found: list[Path] = []
    for place in places:
        runs = (
            [place] if is_run(place) else sorted((file.parent for file in place.rglob("manifest.json")), key=_natural)
        )
        if not runs:
            raise RunError(
                f"no run found in {place}: expected a directory with a manifest.json, or one that holds such"
            )
        found.extend(run for run in runs if run not in found)
    return found


def in_order(runs: Iterable[Run]) -> list[Run]:
    """Return the runs in the order of their numbers in a sweep; in that of their start if they have no numbers."""
    listed = list(runs)
    numbers = {id(run): re.match(r"\d+(?=-|$)", run.path.name) for run in listed}
    if len({run.path.parent for run in listed}) == 1 and all(numbers.values()):
        return sorted(listed, key=lambda run: int(re.findall(r"\d+", run.path.name)[0]))
    return sorted(listed, key=lambda run: run.started)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a sort key by which 2 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one level with dotted keys: `{"a": {"b": 1}}` -> `{"a.b": 1}`. Lists stay."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def _read_manifest(directory: Path) -> dict[str, Any]:
    file = directory / "manifest.json"
    if not directory.is_dir():
        raise RunError(f"no run at {directory}: there is no such directory")
    if not file.is_file():
        raise RunError(
            f"{directory} is no run: it has no manifest.json (a run directory is what `muai_lab run` writes)"
        )
    return _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise RunError(f"cannot read {file}: {problem}") from problem
    if not isinstance(content, dict):
        raise RunError(f"cannot read {file}: expected a JSON object, found {type(content).__name__}")
    return content


def _read_config(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings tree, and the origin of each dotted key."""
    if not file.is_file():
        return {}, {}
    try:
        text = file.read_text(encoding="utf-8")
        content, origins = yaml.safe_load(text), read_origins(text)
    except (OSError, ValueError, yaml.YAMLError) as problem:
        raise RunError(f"cannot read {file}: {problem}") from problem
    return (content, origins) if isinstance(content, dict) else ({}, {})


def requests_frame(table: pa.Table, window: Window) -> pd.DataFrame:
    """Return `Run.requests` for records that are not on disk.

    Args:
        table: Columns of `requests.parquet`.
        window: Phases of the load.
    """
    return _derive(_records_frame(table), window, "complete")


def _read_records(file: Path, *, must_exist: bool, notes: list[str]) -> pd.DataFrame:
    try:
        present = [name for name in pq.read_schema(file).names if name in _INTEGERS or name in _TEXTS]
        table = pq.read_table(file, columns=present)
    except (OSError, pa.ArrowInvalid) as problem:
        if must_exist:
            raise RunError(f"cannot read {file}: {problem}; the run says that it is complete") from problem
        notes.append("no request records" if not file.is_file() else "the request records cannot be read")
        table = pa.table({})
    return _records_frame(table)


def _records_frame(table: pa.Table) -> pd.DataFrame:
    columns: dict[str, pd.Series] = {}
    present = [name for name in table.column_names if name in _INTEGERS or name in _TEXTS]
    frame = (
        table.select(present).to_pandas(integer_object_nulls=False, types_mapper=_INTEGER_TYPES.get)
        if present
        else None
    )
    rows = table.num_rows
    for name in _INTEGERS:
        values = frame[name] if frame is not None and name in frame else pd.Series(pd.NA, index=range(rows))
        columns[name] = values.astype("Int64")
    for name in _TEXTS:
        values = frame[name] if frame is not None and name in frame else pd.Series(pd.NA, index=range(rows))
        columns[name] = values.astype("string")
    if "decode_tokens" not in present:  # of a version that did not distinguish revealed tokens
        columns["last_content_ns"] = columns["last_token_ns"]
        columns["decode_tokens"] = columns["output_tokens"].fillna(columns["client_output_tokens"]) - 1
    return pd.DataFrame(columns)


_INTEGER_TYPES = {
    pa.int64(): pd.Int64Dtype(),
    pa.int32(): pd.Int64Dtype(),
    pa.int16(): pd.Int64Dtype(),
    pa.uint32(): pd.Int64Dtype(),
}


def _derive(records: pd.DataFrame, window: Window | None, status: str) -> pd.DataFrame:
    requests = records.copy()
    origin = pd.Series(window.load_start_ns if window else 0, index=records.index, dtype="Int64")
    requests["due_s"] = seconds_between(due_ns(records), origin)
    for stamp in _STAMPS:
        requests[f"{stamp.removesuffix('_ns')}_s"] = seconds_between(records[stamp], origin)
    ended = records["stream_end_ns"].fillna(records["last_token_ns"]).fillna(records["sent_ns"])
    failed_at_once = records["status"].isin(FAILURES)
    requests["over_s"] = seconds_between(ended.fillna(due_ns(records).where(failed_at_once)), origin)
    requests["tokens"] = output_tokens(records)
    for metric in METRICS:
        if metric.compute is not None:
            requests[metric.column] = metric.compute(records)
    requests["together"] = arrived_together(records)
    requests["in_window"] = due_in_window(records, window)
    requests.attrs["status"] = status
    return requests


def _read_server_metrics(file: Path, window: Window | None, notes: list[str]) -> pd.DataFrame:
    empty = pd.DataFrame({"t_s": [], "name": [], "labels": [], "value": []}).astype(
        {"t_s": "float64", "name": "string", "labels": "string", "value": "float64"}
    )
    if not file.is_file():
        notes.append("no server metrics were recorded")
        return empty
    try:
        table = pq.read_table(file, columns=list(SERVER_COLUMNS))
    except (OSError, pa.ArrowInvalid, KeyError) as problem:
        notes.append(f"the server metrics cannot be read ({str(problem).splitlines()[0]})")
        return empty
    start_ns = window.load_start_ns if window else 0
    t_ns = np.asarray(table["t_ns"].to_numpy(), dtype=np.int64)
    frame = table.select(["name", "labels", "value"]).to_pandas()
    frame.insert(0, "t_s", (t_ns - start_ns) / NS_PER_S)
    typed: pd.DataFrame = frame.astype({"name": "string", "labels": "string", "value": "float64"})
    return typed
