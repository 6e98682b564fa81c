"""`azure`: traces of the Azure LLM inference dataset (github.com/Azure/AzurePublicDataset, 2023 and 2024)."""

from __future__ import annotations

from muai_lab.settings.workload import AzureWorkload
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.recorded import TraceFormat, recorded_source
from muai_lab.workload.source import Source
from muai_lab.workload.trace_rows import table_rows

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def source(workload: AzureWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """Return the requests of the trace; see `recorded_source`."""
    rows = TraceFormat(lambda reading, clock: table_rows(reading, workload, clock, _COLUMNS))
    return recorded_source(workload, streams, maker, rows)
