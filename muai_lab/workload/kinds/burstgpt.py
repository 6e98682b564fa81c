"""`burstgpt`: BurstGPT traces (github.com/HPMLL/BurstGPT; Wang et al., 2024)."""

from __future__ import annotations

from muai_lab.settings.workload import BurstGptWorkload
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.recorded import TraceFormat, recorded_source
from muai_lab.workload.source import Source
from muai_lab.workload.trace_rows import ChosenRows, table_rows

_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def source(workload: BurstGptWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """Return the requests of the trace that `model` and `log_type` choose; see `recorded_source`."""
    chosen = ChosenRows({"Model": workload.model, "Log Type": workload.log_type})
    rows = TraceFormat(lambda reading, clock: table_rows(reading, workload, clock, _COLUMNS, chosen))
    return recorded_source(workload, streams, maker, rows)
