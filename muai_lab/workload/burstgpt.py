"""BurstGPT traces (github.com/HPMLL/BurstGPT; Wang et al., BurstGPT: A Real-world Workload Dataset, 2024)."""

from __future__ import annotations

from muai_lab.errors import RunError
from muai_lab.settings.workload import BurstGptWorkload
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.reading import Reading, number, tokens
from muai_lab.workload.source import Source
from muai_lab.workload.trace import Row, csv_rows, read_trace, trace_source

_TIME, _MODEL, _PROMPT, _OUTPUT, _LOG = "Timestamp", "Model", "Request tokens", "Response tokens", "Log Type"


def burstgpt_source(workload: BurstGptWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """The requests of the trace. Raises RunError for a file that is none and for the first line that is bad."""
    reading = Reading.of(workload)
    wanted = {_MODEL: workload.model, _LOG: workload.log_type}
    chosen = {column: value for column, value in wanted.items() if value is not None}
    seen: dict[str, set[str]] = {column: set() for column in chosen}

    def row(fields: dict[str, str]) -> Row | None:
        for column, value in chosen.items():
            seen[column].add(fields[column])
            if fields[column] != value:
                return None
        return (
            number(fields[_TIME], _TIME), tokens(fields[_PROMPT], _PROMPT), tokens(fields[_OUTPUT], _OUTPUT), None
        )  # fmt: skip

    try:
        rows = csv_rows(reading, (_TIME, _PROMPT, _OUTPUT, *chosen), row)
        trace = read_trace(reading, workload, rows)
    except RunError as error:
        for column, value in chosen.items():
            if seen[column] and value not in seen[column]:
                there = ", ".join(sorted(seen[column]))
                raise RunError(f"{reading.path}: no {column} is {value!r}; there are {there}") from error
        raise
    return trace_source(workload, reading, trace, streams, maker)
