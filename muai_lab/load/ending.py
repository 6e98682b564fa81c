"""The end of a window that is decided while the load runs, from the generators' observations so far.

A generator passes on its observations in batches, and asks for the end at the same times. The decision is made in the
same process, or by a coordinator elsewhere (`Relay`).
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
"""From the decision to the end: by then it has reached every generator, also one in another process."""


@dataclass(frozen=True, slots=True)
class ObservedBatch:
    """The observations of a generator since its last batch; monotonic nanoseconds of one clock.

    Latencies count from the due time in an open loop, from sending in a closed one.

    Attributes:
        sent_ns: Due times of the requests that were sent, `[sent]`.
        due_ns: Due times of the requests that ended, `[ended]`.
        over_ns: Times of their ends, `[ended]`.
        ttft_s, tpot_s, e2e_s, tokens: Of the same requests, `[ended]`; NaN if missing or if the request failed.
    """

    sent_ns: Ints
    due_ns: Ints
    over_ns: Ints
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    tokens: Floats

    def on(self, clock: ClockOffset) -> ObservedBatch:
        """Return the batch with its times, which are of another clock, on the local clock."""
        if not clock.offset_ns:
            return self
        sent_ns, due_ns, over_ns = (each - clock.offset_ns for each in (self.sent_ns, self.due_ns, self.over_ns))
        return replace(self, sent_ns=sent_ns, due_ns=due_ns, over_ns=over_ns)


def joined(batches: Sequence[ObservedBatch]) -> ObservedBatch:
    """Return the concatenation of the batches, at least one."""
    return ObservedBatch(
        *(np.concatenate([getattr(batch, name) for batch in batches]) for name in ObservedBatch.__slots__)
    )


class Ending(Protocol):
    """Decides when the measurement window ends."""

    def begin(self, measure_ns: int) -> None:
        """Begin the window at this time of the generator's clock."""

    def see(self, batch: ObservedBatch) -> None:
        """Process the observations since the last call."""

    @property
    def end_ns(self) -> int | None:
        """End of the window on the generator's clock; None until it is decided."""


class Sightings:
    """Finds the new entries in a generator's growing list of records."""

    def __init__(self) -> None:
        self._taken = 0
        self._in_flight: list[RequestRecord] = []

    def batch(self, records: Sequence[RequestRecord]) -> ObservedBatch:
        """Return the requests that were sent or ended since the last call; records: all so far, in order of sending."""
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
    """The ending of a generator with a coordinator elsewhere: passes batches on, and receives the end."""

    def __init__(self, pass_on: Callable[[ObservedBatch], None]) -> None:
        self._pass_on = pass_on
        self._end_ns: int | None = None

    def begin(self, measure_ns: int) -> None:
        """Do nothing: the coordinator knows the start of the window."""

    def see(self, batch: ObservedBatch) -> None:
        """Pass the batch on."""
        self._pass_on(batch)

    @property
    def end_ns(self) -> int | None:
        """The end that was received."""
        return self._end_ns

    def end_at(self, end_ns: int) -> None:
        """Set the end, which the coordinator has decided."""
        self._end_ns = end_ns
