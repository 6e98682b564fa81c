"""Recorded requests, sent again: the common part of all kinds of traces.

A trace has lengths, so prompts are made up, each for itself. Texts in the trace are sent as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from muai_lab.settings.workload import TimeUnit, TraceWorkload
from muai_lab.workload.prompt_set import Scripts
from muai_lab.workload.prompts import PromptMaker, user
from muai_lab.workload.randomness import RandomStreams, endless_seeds
from muai_lab.workload.reading import FileReading
from muai_lab.workload.rows import Unit
from muai_lab.workload.schedule import ScheduledRequest
from muai_lab.workload.source import Passes, Source
from muai_lab.workload.timestamps import Timestamps, order_notes
from muai_lab.workload.trace import Trace, turn_of
from muai_lab.workload.trace_rows import NumberedTraceRow, read_trace
from muai_lab.workload.written import Written, WrittenTurn

PromptOf = Callable[[int, int, np.random.Generator], tuple[str, int]]
"""From the place of a request in the trace and the wanted number of tokens to a prompt: its text and real count."""

# Longest usual prompts and answers. Beyond, a length is more likely one of characters or bytes.
_USUAL_PROMPT, _USUAL_OUTPUT = 262_144, 65_536


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """The format of one kind of trace.

    Attributes:
        rows: Reads the rows of a file, with its times.
        unit: Usual unit of the recorded times.
        prompts: Makes the prompts of a trace; None makes each up for itself.
    """

    rows: Callable[[FileReading, Timestamps], Iterator[NumberedTraceRow]]
    unit: TimeUnit = "s"
    prompts: Callable[[Trace], PromptOf] | None = None


def recorded_source(workload: TraceWorkload, streams: RandomStreams, maker: PromptMaker, form: TraceFormat) -> Source:
    """Return the requests of the trace in the order of time, without end: after the last comes the first again.

    Raises:
        RunError: The file is no trace, or has a bad row (unless `workload.on_error` is skip).
    """
    reading = FileReading.of(workload)
    clock = Timestamps(form.unit, workload.time_unit)
    trace = read_trace(reading, workload, form.rows(reading, clock))
    prompt_of = None if form.prompts is None else form.prompts(trace)
    replay = _Replay(workload, reading, trace, streams, maker, prompt_of)
    times_s = trace.sorted_times_s()
    doubts = tuple(_length_doubts(trace))
    return Source(
        replay.units(),
        None if times_s is None else times_s[replay.kept],
        notes=lambda: (*reading.notes(), *doubts, *replay.notes()),
        time_notes=order_notes(np.array(trace.times_s), reading.path.name),
        unit_doubts=() if times_s is None else clock.doubts(times_s),
    )


class _Replay:
    """Makes requests of a trace."""

    def __init__(
        self,
        workload: TraceWorkload,
        reading: FileReading,
        trace: Trace,
        streams: RandomStreams,
        maker: PromptMaker,
        prompt_of: PromptOf | None,
    ) -> None:
        self._trace = trace
        self._streams = streams
        self._maker = maker
        self._length_scale = workload.length_scale
        self._output_scale = workload.length_scale if workload.output_scale is None else workload.output_scale
        self._prompt_of: PromptOf = prompt_of or (lambda _, length, words: maker.prompt(length, words))
        self._scripts = Scripts(maker, reading.path.name)
        self._lengthened: set[int] = set()
        order = trace.in_order()
        self.kept = np.array([self._is_kept(place) for place in order], dtype=bool)
        """For each start, by time, True if it is sent: written prompts beyond the context are left out."""
        self._order = [place for place, kept in zip(order, self.kept, strict=True) if kept]
        maker.context.prompts_dropped += len(order) - len(self._order)
        if not self._order:
            raise reading.nothing(f"prompt that fits into the model's context of {maker.context.tokens} tokens")
        self._rounds = Passes(len(self._order), "request", reading.path.name)
        if trace.written and workload.length_scale != 1.0:
            reading.remark("among others have a written prompt, whose length workload.length_scale does not change")

    def units(self) -> Iterator[Unit]:
        """Yield requests and sessions without end."""
        words, seeds = self._streams.stream("prompts"), endless_seeds(self._streams)
        trace = self._trace
        for number in self._rounds.places():
            place = self._order[number]
            if place in trace.later or place in trace.written:
                yield self._scripts.unit(self._script(place, words), place, repeat(1), repeat(0.0), seeds)
                continue
            length, output = self._fitted(place)
            prompt, tokens = self._prompt_of(place, length, words)
            blocks = trace.blocks.get(place)
            group = blocks[0] if blocks else None
            yield [
                ScheduledRequest(
                    -1, None, prompt, None, tokens, output,
                    prefix_group=group, seed=next(seeds), extra=trace.extra.get(place),
                )
            ]  # fmt: skip

    def notes(self) -> tuple[str, ...]:
        """Return notes on requests that differ from the recorded ones or are repeated."""
        least = self._maker.template_tokens + 1
        longer = f"prompts made longer than recorded, to the {least} tokens that the chat template needs"
        lengthened = (f"{longer}: {len(self._lengthened):,}",) if self._lengthened else ()
        return (*lengthened, *self._scripts.notes(), *self._rounds.notes())

    def _is_kept(self, place: int) -> bool:
        written = self._trace.written.get(place)
        return written is None or self._scripts.fits(written, place)

    def _fitted(self, place: int) -> tuple[int, int]:
        """Return lengths of prompt and answer of a made-up request."""
        least = self._maker.template_tokens + 1
        wanted = scaled(self._trace.prompt_tokens[place], self._length_scale)
        if wanted < least:
            self._lengthened.add(place)
        output = scaled(self._trace.output_tokens[place], self._output_scale)
        return self._maker.context.fit(max(wanted, least), output, least)

    def _script(self, first: int, words: np.random.Generator) -> Written:
        """Return the turns of a session, or a written prompt."""
        turns: list[WrittenTurn] = []
        for place in (first, *self._trace.later.get(first, ())):
            written = self._trace.written.get(place)
            if written is not None:
                turns += [self._scaled(turn, place) for turn in written]
                continue
            length, output = self._fitted(place)
            messages = (user(self._prompt_of(place, length, words)[0]),)
            turns.append(turn_of(self._trace, place, messages, output))
        return tuple(turns)

    def _scaled(self, turn: WrittenTurn, place: int) -> WrittenTurn:
        output = turn.output_tokens
        if output is None and turn.answer:
            output = len(self._maker.tokenizer.encode(turn.answer))
        pause_s = self._trace.pauses_s.get(place) if turn.think_s is None else turn.think_s
        return WrittenTurn(turn.messages, scaled(output or 1, self._output_scale), None, pause_s, turn.extra)


def _length_doubts(trace: Trace) -> Iterator[str]:
    for name, lengths, usual in (
        ("prompts", trace.prompt_tokens, _USUAL_PROMPT),
        ("answers", trace.output_tokens, _USUAL_OUTPUT),
    ):
        middle = float(np.median(np.array(lengths)))
        if middle > usual:
            yield f"the recorded {name} have {middle:,.0f} tokens at the median: are these characters or bytes?"


def scaled(length: int, scale: float) -> int:
    """Return a recorded length, scaled, of at least one token."""
    return max(1, round(length * scale))
