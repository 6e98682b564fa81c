"""Many runs as one table: a row per run, its result and its configuration."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from muai_lab.analysis.frames import Run, find_runs, flatten, load_run
from muai_lab.analysis.summary import summarise
from muai_lab.analysis.summary_schema import Summary, read_summary


def load_runs(where: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Return one row per run found in `where` (run directories, or a sweep directory that holds them).

    Columns: `path`, `status`; the summary with dotted keys (`throughput.requests_per_s.value`,
    `latency.ttft_s.p99.value`, ...); the settings as `config.<dotted key>`. A key that a run lacks is NaN or None.
    Raises RunError when no run is found or one cannot be read.
    """
    rows = [run_row(load_run(path)) for path in find_runs(where)]
    return pd.DataFrame(rows)


def run_row(run: Run) -> dict[str, Any]:
    """Return one run as a flat mapping, as in `load_runs`."""
    row: dict[str, Any] = {"path": str(run.path), "status": run.status}
    stored = None if stored_summary(run) is None else run.summary
    row |= flatten(stored or summarise(run).as_document())
    return row | flatten(run.config, "config.")


def summary_of(run: Run) -> Summary:
    """Return the summary in the directory of the run, or a new one if it holds none that this version understands."""
    stored = stored_summary(run)
    return summarise(run) if stored is None else stored


def stored_summary(run: Run) -> Summary | None:
    """Return the summary in the directory of a complete run; None if it holds none that this version understands."""
    return read_summary(run.summary) if run.complete and run.summary is not None else None
