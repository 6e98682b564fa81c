"""The end of a window that is decided while the load runs, from what the generators have seen so far.

A generator hands over what it saw in batches, and asks for the end at the same occasions. Who decides may be in the
same process, or lead generators elsewhere (`Relay`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from muai_lab.arrays import Floats, Ints
from muai_lab.load.clock_offset import ClockOffset
from muai_lab.request_record import RequestRecord

LEAD_NS = 700_000_000
"""From the decision to the end: every generator has asked for it by then, also one that is asked itself."""


@dataclass(frozen=True, slots=True)
class ObservedBatch:
    """What a generator saw since its last batch; monotonic nanoseconds of one clock.

    sent_ns: when the requests that were sent were due. due_ns, over_ns: of the requests that ended. ttft_s, tpot_s,
    e2e_s, tokens: of the same requests; NaN if missing or if the request failed. Latencies count from the due time in
    an open loop, from sending in a closed one.
    """

    sent_ns: Ints
    due_ns: Ints
    over_ns: Ints
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    tokens: Floats

    def on(self, clock: ClockOffset) -> ObservedBatch:
        """The same batch with the times of another clock put on ours."""
        if not clock.offset_ns:
            return self
        sent_ns, due_ns, over_ns = (each - clock.offset_ns for each in (self.sent_ns, self.due_ns, self.over_ns))
        return replace(self, sent_ns=sent_ns, due_ns=due_ns, over_ns=over_ns)


def joined(batches: Sequence[ObservedBatch]) -> ObservedBatch:
    """Several batches, at least one, as one."""
    return ObservedBatch(
        *(np.concatenate([getattr(batch, name) for batch in batches]) for name in ObservedBatch.__slots__)
    )


class Ending(Protocol):
    """Decides when the measurement window ends."""

    def begin(self, measure_ns: int) -> None:
        """The window begins at this time of the generator's clock."""

    def see(self, batch: ObservedBatch) -> None:
        """Take in what was seen since the last call."""

    @property
    def end_ns(self) -> int | None:
        """When the window ends, on the generator's clock; None as long as that is not decided."""


class Sightings:
    """Finds in a generator's growing list of records what is new since the last time."""

    def __init__(self) -> None:
        self._taken = 0
        self._in_flight: list[RequestRecord] = []

    def batch(self, records: Sequence[RequestRecord]) -> ObservedBatch:
        """What was sent and what ended since the last call. records: all of the load, in order of sending."""
        sent = records[self._taken :]
        self._taken = len(records)
        known = [*self._in_flight, *sent]
        self._in_flight = [record for record in known if record.status is None]
        ended = [record for record in known if record.status is not None]
        figures = np.array([_figures(record) for record in ended], dtype=np.float64).reshape(len(ended), 4)
        return ObservedBatch(
            np.array([record.due_ns for record in sent], dtype=np.int64),
            np.array([record.due_ns for record in ended], dtype=np.int64),
            np.array([record.last_token_ns or record.stream_end_ns for record in ended], dtype=np.int64),
            *figures.T,
        )


def _figures(record: RequestRecord) -> tuple[float | None, ...]:
    return (*record.latencies_s.values(), record.total_tokens) if record.status == "ok" else (None,) * 4


class Relay:
    """The ending of a generator that is led from elsewhere: passes batches on, and is told the end."""

    def __init__(self, pass_on: Callable[[ObservedBatch], None]) -> None:
        self._pass_on = pass_on
        self._end_ns: int | None = None

    def begin(self, measure_ns: int) -> None:
        """The leader knows when the window begins."""

    def see(self, batch: ObservedBatch) -> None:
        """Pass it on."""
        self._pass_on(batch)

    @property
    def end_ns(self) -> int | None:
        """As it was told."""
        return self._end_ns

    def end_at(self, end_ns: int) -> None:
        """The leader has decided."""
        self._end_ns = end_ns
