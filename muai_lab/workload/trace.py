"""Recorded traces: when somebody asked, how long the prompt was and how long the answer."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from muai_lab.settings.workload import TraceWorkload
from muai_lab.workload.arrival import Offsets
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams, endless_seeds
from muai_lab.workload.reading import Reading, counted
from muai_lab.workload.rows import Unit
from muai_lab.workload.schedule import ScheduledRequest
from muai_lab.workload.source import Rounds, Source

Blocks = list[int]

PromptOf = Callable[[int, int, np.random.Generator], tuple[str, int]]
"""Makes the prompt of the request at a place of the trace, of so many tokens: text and real count."""


class Trace:
    """The requests of a trace, as columns.

    times_s: seconds, of any origin. blocks: per request the ids of the blocks that its prompt is made of, where the
    format has them. without_output: requests that were left out because nothing had been answered.
    """

    def __init__(self) -> None:
        self.times_s = array("d")
        self.prompt_tokens = array("q")
        self.output_tokens = array("q")
        self.blocks: list[Blocks] = []
        self.without_output = 0

    def __len__(self) -> int:
        return len(self.times_s)

    def add(self, time_s: float, prompt_tokens: int, output_tokens: int, blocks: Blocks | None = None) -> None:
        """Append one request."""
        if output_tokens == 0:
            self.without_output += 1
            return
        self.times_s.append(time_s)
        self.prompt_tokens.append(prompt_tokens)
        self.output_tokens.append(output_tokens)
        if blocks is not None:
            self.blocks.append(blocks)

    def in_order(self) -> list[int]:
        """Places by time; requests of the same time stay in the order of the file."""
        order: list[int] = np.argsort(np.array(self.times_s), kind="stable").tolist()
        return order


Row = tuple[float, int, int, Blocks | None]


def read_trace(reading: Reading, workload: TraceWorkload, rows: Iterable[Row]) -> Trace:
    """Collect what a format's reader finds, from `workload.skip` on and at most `workload.limit`.

    Nothing beyond the limit is read. Raises RunError when nothing is left.
    """
    trace = Trace()
    for number, row in enumerate(rows):
        if number >= workload.skip:
            trace.add(*row)
        if len(trace) == workload.limit:
            break
    if len(trace) == 0:
        raise reading.nothing("request to replay")
    return trace


def csv_rows(
    reading: Reading, columns: tuple[str, ...], parse: Callable[[dict[str, str]], Row | None]
) -> Iterator[Row]:
    """Rows of a CSV file with a header and no commas inside fields; `parse` returns None for a row to pass over.

    Raises RunError when a column is missing.
    """
    header: list[str] | None = None
    for number, line in reading.lines():
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(",")]
        if header is None:
            header = fields
            if missing := [column for column in columns if column not in header]:
                raise reading.wrong_columns(missing, header)
            continue
        if len(fields) != len(header):
            reading.bad(number, f"{len(fields)} fields instead of {len(header)}")
            continue
        try:
            row = parse(dict(zip(header, fields, strict=True)))
        except ValueError as error:
            reading.bad(number, str(error))
        else:
            if row is not None:
                yield row


def trace_source(
    workload: TraceWorkload,
    reading: Reading,
    trace: Trace,
    streams: RandomStreams,
    maker: PromptMaker,
    prompt_of: PromptOf | None = None,
) -> Source:
    """The trace's requests in order of time, without end: after the last comes the first again.

    prompt_of: makes the prompts; None makes them up, each for itself.
    """
    order = trace.in_order()
    output_scale = workload.length_scale if workload.output_scale is None else workload.output_scale
    rounds = Rounds(len(trace), "request", reading.path.name)

    def units() -> Iterator[Unit]:
        words, seeds = streams.stream("prompts"), endless_seeds(streams)
        for place in rounds.places():
            row = order[place]
            length, output = maker.context.fit(
                max(scaled(trace.prompt_tokens[row], workload.length_scale), maker.template_tokens + 1),
                scaled(trace.output_tokens[row], output_scale),
                maker.template_tokens + 1,
            )
            prompt, tokens = maker.prompt(length, words) if prompt_of is None else prompt_of(row, length, words)
            group = trace.blocks[row][0] if trace.blocks and trace.blocks[row] else None
            yield [ScheduledRequest(-1, None, prompt, None, tokens, output, prefix_group=group, seed=next(seeds))]

    def notes() -> tuple[str, ...]:
        failed: tuple[str, ...] = ()
        if trace.without_output:
            requests = counted(trace.without_output, "request")
            failed = (f"left out of {reading.path.name}, since they have no answer: {requests}",)
        return (*reading.notes(), *failed, *rounds.notes())

    times: Offsets = np.array(trace.times_s)[order]
    return Source(units(), times, notes)


def scaled(length: int, scale: float) -> int:
    """A recorded length, scaled, and at least one token."""
    return max(1, round(length * scale))


def field_of(entry: dict[str, Any], name: str) -> Any:
    """A field of a JSON object; raises ValueError when it is not there."""
    if name not in entry:
        raise ValueError(f"{name} is missing")
    return entry[name]
