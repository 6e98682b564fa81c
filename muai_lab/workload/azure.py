"""Traces of the Azure LLM inference dataset (github.com/Azure/AzurePublicDataset, 2023 and 2024)."""

from __future__ import annotations

from datetime import UTC, datetime

from muai_lab.settings.workload import AzureWorkload
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.reading import Reading, shown, tokens
from muai_lab.workload.source import Source
from muai_lab.workload.trace import Row, csv_rows, read_trace, trace_source

_TIME, _PROMPT, _OUTPUT = "TIMESTAMP", "ContextTokens", "GeneratedTokens"


def azure_source(workload: AzureWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """The requests of the trace. Raises RunError for a file that is none and for the first line that is bad."""
    reading = Reading.of(workload)
    trace = read_trace(reading, workload, csv_rows(reading, (_TIME, _PROMPT, _OUTPUT), _row))
    return trace_source(workload, reading, trace, streams, maker)


def _row(fields: dict[str, str]) -> Row:
    return _seconds(fields[_TIME]), tokens(fields[_PROMPT], _PROMPT), tokens(fields[_OUTPUT], _OUTPUT), None


def _seconds(stamp: str) -> float:
    """Seconds since 1970 of a time such as `2023-11-16 18:17:03.9799600`; it is UTC where it does not say otherwise."""
    try:
        time = datetime.fromisoformat(stamp)
    except ValueError:
        raise ValueError(f"{_TIME} is {shown(stamp)}, expected a time such as 2023-11-16 18:17:03.9799600") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
