"""`mooncake`: Mooncake traces (github.com/kvcache-ai/Mooncake; Qin et al., FAST 2025), with their shared prefixes.

A request's `hash_ids` name the blocks of its prompt, 512 tokens each, the last one shorter. An id stands for the
content of a block and of everything before it, so two prompts that begin with the same ids began with the same tokens.
Each id becomes a made-up text of the block's length, always the same one. A prompt is made of the texts of its blocks.

aiperf and SGLang extend the format by texts, messages, sessions and delays.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from muai_lab.settings.workload import MooncakeWorkload
from muai_lab.workload.fields import OUTPUT_LIMITS, OUTPUT_TOKENS, PROMPT_TOKENS, Row, length, name_unused
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.reading import FileReading, exact, number, shown
from muai_lab.workload.recorded import PromptOf, TraceFormat, recorded_source
from muai_lab.workload.request_fields import request_fields
from muai_lab.workload.row_files import format_of, rows_of
from muai_lab.workload.source import Source
from muai_lab.workload.timestamps import PER_SECOND, Timestamps
from muai_lab.workload.trace import Trace, TraceRow
from muai_lab.workload.trace_rows import NumberedTraceRow, needed, row_time_s
from muai_lab.workload.written import USUAL, Form, RowReader

_SESSIONS = ("session_id", "conversation_id")
_TEXTS_KEPT = 65_536


def source(workload: MooncakeWorkload, streams: RandomStreams, maker: PromptMaker) -> Source:
    """Return the requests of the trace; see `recorded_source`."""
    form = TraceFormat(
        lambda reading, clock: _rows(reading, workload, clock),
        unit="ms",
        prompts=lambda trace: _block_prompts(trace, workload, streams, maker),
    )
    return recorded_source(workload, streams, maker, form)


def _rows(reading: FileReading, workload: MooncakeWorkload, clock: Timestamps) -> Iterator[NumberedTraceRow]:
    parser = _MooncakeRows(reading, workload, clock)
    texts = format_of(reading) == "csv"
    for line, fields in rows_of(reading):
        row = Row(fields, texts=texts)
        try:
            found = parser.row(row)
        except ValueError as error:
            reading.bad(line, str(error))
            continue
        name_unused(reading, row)
        if found is not None:
            yield line, found


class _MooncakeRows:
    """Reads rows with `input_length` and `hash_ids`, or with a text (`text_input`, `messages`, `payload`)."""

    def __init__(self, reading: FileReading, workload: MooncakeWorkload, clock: Timestamps) -> None:
        self._reading = reading
        self._workload = workload
        self._clock = clock
        self._send = workload.request_fields == "send"
        self._reader = RowReader(reading, Form(workload.api, self._send))

    def row(self, row: Row) -> TraceRow | None:
        """Return the request of a row, None if it asks nothing; raises ValueError if the row makes no sense."""
        session = next((str(exact(row.take(name), name)) for name in _SESSIONS if name in row), None)
        time_s, pause_s = row_time_s(row, self._clock), self._pause_s(row)
        prompt = length(row, PROMPT_TOKENS)
        if prompt is None:
            return self._written(row, time_s, session, pause_s)
        output = needed(length(row, OUTPUT_TOKENS + OUTPUT_LIMITS), "output_length")
        extra = request_fields([row], self._workload.api) if self._send else None
        blocks = self._blocks(row, prompt)
        return TraceRow(time_s, prompt, output, blocks, session, pause_s, extra=extra)

    def _written(self, row: Row, time_s: float | None, session: str | None, pause_s: float | None) -> TraceRow | None:
        if not any(name in row for name in USUAL):
            raise ValueError("input_length is missing, and so is a text_input or messages")
        whole = "messages" in row or "payload" in row
        mode = row.take("message_mode")
        written = self._reader.read(row)
        if written is None:
            return None
        if any(turn.output_tokens is None and turn.answer is None for turn in written):
            raise ValueError("output_length is missing")
        # A text is new in its session; messages hold the session from its beginning unless they are deltas.
        delta = mode == "delta"
        return TraceRow(time_s, 0, 1, None, session, pause_s, written, new_only=delta or not whole, follows=delta)

    def _pause_s(self, row: Row) -> float | None:
        delay = row.take("delay")
        if delay is None:
            return None
        if (pause := number(delay, "delay")) < 0:
            raise ValueError(f"delay is {shown(delay)}, expected a time from 0")
        return pause / PER_SECOND[self._workload.time_unit or "ms"]

    def _blocks(self, row: Row, prompt: int) -> list[int]:
        ids: Any = row.take("hash_ids")
        ids = [] if ids is None else ids
        if not isinstance(ids, list) or not all(type(item) is int and abs(item) < 1 << 63 for item in ids):
            raise ValueError(f"hash_ids is {shown(ids)}, expected a list of whole numbers")
        block_tokens = self._workload.block_tokens
        if len(ids) * block_tokens < prompt and ids:
            raise ValueError(
                f"{len(ids)} hash_ids of {block_tokens} tokens cannot make an input_length of {prompt}; see "
                "workload.block_tokens"
            )
        blocks = -(-prompt // block_tokens)
        if len(ids) > blocks:
            self._reading.remark(
                f"with more hash_ids than blocks of {block_tokens} tokens in input_length: the first are used, see "
                "workload.block_tokens"
            )
        return ids[:blocks]


def _block_prompts(trace: Trace, workload: MooncakeWorkload, streams: RandomStreams, maker: PromptMaker) -> PromptOf:
    """Return the function that makes prompts of blocks."""
    # A block ends with a line end, which keeps it apart from the next one for the tokenizer; so it has two tokens at
    # least, one of them the line end.
    block_tokens = max(2, round(workload.block_tokens * workload.length_scale))

    @lru_cache(maxsize=_TEXTS_KEPT)
    def block(identifier: int) -> str:
        return maker.text(block_tokens - 1, streams.stream(f"block {identifier}")) + "\n"

    def prompt_of(place: int, length: int, words: np.random.Generator) -> tuple[str, int]:
        del words  # a block's text depends on its id alone
        ids = trace.blocks.get(place, [])
        room = length - maker.template_tokens
        whole = min(len(ids) - 1, (room - 1) // block_tokens) if ids else 0
        head_tokens = length
        while whole > 0 and head_tokens >= length:  # once, unless the tokenizer takes more tokens for a block
            head = "".join(block(identifier) for identifier in ids[:whole])
            head_tokens = maker.count(head)
            whole -= head_tokens >= length
        tail = streams.stream(f"tail {ids[whole]}" if ids else f"row {place}")
        return maker.prompt(length, tail, head=head if whole > 0 else "", head_tokens=head_tokens)

    return prompt_of
