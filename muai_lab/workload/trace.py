"""Recorded requests: times, lengths of prompts and answers, and in some formats texts and sessions."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from muai_lab.workload.arrival import Offsets
from muai_lab.workload.reading import FileReading
from muai_lab.workload.schedule import Message, message_text
from muai_lab.workload.written import Written, WrittenTurn

BlockIds = list[int]


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One recorded request.

    Attributes:
        time_s: Seconds, of any origin; None if the row has no time.
        prompt_tokens: Length of the prompt; 0 for a written one.
        output_tokens: Length of the answer.
        blocks: Ids of the blocks of the prompt, None if the format has none.
        session: Name of its session.
        pause_s: Seconds from the previous answer of its session.
        written: Its prompt or conversation.
        new_only: The prompt holds only the new part of its session; otherwise the session from its beginning.
        follows: The prompt needs the turns before it.
        extra: As in `WrittenTurn`.
    """

    time_s: float | None
    prompt_tokens: int
    output_tokens: int
    blocks: BlockIds | None = None
    session: str | None = None
    pause_s: float | None = None
    written: Written | None = None
    new_only: bool = True
    follows: bool = False
    extra: str | None = None


class Trace:
    """The requests of a trace, as columns.

    A place is the number of a request in the order of the file.

    Attributes:
        times_s: Times of the starts, in their order.
        prompt_tokens, output_tokens: Lengths by place.
        starts: Places that wait for no answer: single requests, and the first turns of sessions.
        later: Places of the later turns of a session, by the place of its first.
        blocks, written, extra, pauses_s: By place, of the requests that have them.
        timed: True if requests have times.
    """

    def __init__(self, reading: FileReading) -> None:
        self.times_s = array("d")
        self.prompt_tokens = array("q")
        self.output_tokens = array("q")
        self.starts = array("q")
        self.later: dict[int, list[int]] = {}
        self.blocks: dict[int, BlockIds] = {}
        self.written: dict[int, Written] = {}
        self.extra: dict[int, str] = {}
        self.pauses_s: dict[int, float] = {}
        self.timed = False
        self._reading = reading
        self._sessions: dict[str, int] = {}
        self._said: dict[str, list[Message]] = {}

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def add(self, row: TraceRow) -> None:
        """Append a request, unless it is empty; raises ValueError if it contradicts those before it."""
        if row.output_tokens == 0:
            self._reading.leave_out("without an answer")
        elif row.prompt_tokens == 0 and row.written is None:
            self._reading.leave_out("with a prompt of 0 tokens")
        elif (first := self._first_of(row)) is None:
            self._add_start(row)
        else:
            self._add_later(row, first)

    def in_order(self) -> list[int]:
        """Return the starts by time; requests of the same time stay in the order of the file."""
        starts = np.array(self.starts)
        if not self.timed:
            return list(map(int, starts))
        order: list[int] = starts[np.argsort(np.array(self.times_s), kind="stable")].tolist()
        return order

    def sorted_times_s(self) -> Offsets | None:
        """Return the times of the starts, ascending; None if they have none."""
        return np.sort(np.array(self.times_s)) if self.timed else None

    def _first_of(self, row: TraceRow) -> int | None:
        """Return the place of the first turn of the session that the row continues; None for a single request."""
        first = None if row.session is None else self._sessions.get(row.session)
        if first is None or row.follows or row.time_s is None or row.pause_s is not None:
            return first
        self._reading.remark("of a session with a time of their own: sent at it, not after the answer before")
        return None

    def _add_start(self, row: TraceRow) -> None:
        if len(self.starts) == 0:
            self.timed = row.time_s is not None
        if self.timed and row.time_s is None:
            raise ValueError("the time is missing, which the first request has")
        if not self.timed and row.time_s is not None:
            self._reading.remark("with a time that has no use, since the first request has none")
        if row.pause_s is not None:
            self._reading.remark("with a delay and no turn before it: it has no effect")
        place = self._append(row, row.written)
        self.starts.append(place)
        if self.timed and row.time_s is not None:
            self.times_s.append(row.time_s)
        if row.session is not None:
            self._sessions[row.session] = place
            self._said[row.session] = list(row.written[0].messages) if row.written else []

    def _add_later(self, row: TraceRow, first: int) -> None:
        assert row.session is not None, "the row continues a session"
        written = row.written
        if written is not None and not row.new_only:
            written = self._new_in(written, row.session)
        if row.time_s is not None:
            self._reading.remark("of a session: sent after the answer before, not at a time of their own")
        place = self._append(row, written)
        self.later.setdefault(first, []).append(place)
        self.pauses_s[place] = row.pause_s or 0.0

    def _new_in(self, written: Written, session: str) -> Written:
        """Return the turn without the messages of the turns before it, and without the recorded answer to them."""
        messages = list(written[0].messages)
        before = self._said[session]
        if len(messages) <= len(before) or not _alike(messages[: len(before)], before):
            raise ValueError("messages do not begin with those of the turn before in its session")
        self._said[session] = messages
        new = messages[len(before) :]
        if new[0]["role"] == "assistant":
            self._reading.remark("with a recorded answer inside a session: the server's own takes its place")
            new = new[1:]
        if not new:
            raise ValueError("messages hold an answer and no further question")
        return (replace(written[0], messages=tuple(new)), *written[1:])

    def _append(self, row: TraceRow, written: Written | None) -> int:
        place = len(self)
        self.prompt_tokens.append(row.prompt_tokens)
        self.output_tokens.append(row.output_tokens)
        if row.blocks:
            self.blocks[place] = row.blocks
        if written is not None:
            self.written[place] = written
        if row.extra is not None:
            self.extra[place] = row.extra
        return place


def _alike(messages: Sequence[Message], before: Iterable[Message]) -> bool:
    pairs = zip(messages, before, strict=True)
    return all(one["role"] == other["role"] and message_text(one) == message_text(other) for one, other in pairs)


def turn_of(trace: Trace, place: int, messages: tuple[Message, ...], output_tokens: int) -> WrittenTurn:
    """Return a turn with a made-up prompt and the trace's values for it."""
    pause_s = trace.pauses_s.get(place)
    return WrittenTurn(messages, output_tokens, think_s=pause_s, extra=trace.extra.get(place))
