"""The requests of one engine: which wait, which run and in which slot, and which may join next.

Pure decisions on explicit time: no clock is read and nothing is awaited, so the same objects run against a real engine
and in virtual time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from muai_lab.stack.adaptive import LimitKeeper
from muai_lab.stack.deadlines import Deadlines
from muai_lab.stack.events import Admitted, Event, Failed, Lost, Queued, Token
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.places import Places
from muai_lab.stack.prefix_cache import Policy, PrefixCache
from muai_lab.stack.prefix_reuse import PrefixReuse
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.sequence import SequenceState
from muai_lab.stack.suspects import Suspects


class Batcher:
    """Admits waiting requests into slots, oldest first within a priority, and ends those that run.

    Both kinds of scheduling build on it: `Scheduler` plans every step, `StreamBatcher` only admits. A slot is free as
    soon as its sequence ends.
    """

    def __init__(
        self,
        limits: BatchLimits,
        *,
        slots: int,
        eos_token_ids: frozenset[int] = frozenset(),
        prompts_in_pieces: bool = True,
        cache: PrefixCache | None = None,
    ) -> None:
        """prompts_in_pieces: the engine computes any piece of a prompt, so earlier output may belong to it."""
        self._slots = slots
        self._limits = limits.checked(slots)
        self._limit = LimitKeeper(limits)
        self._eos = eos_token_ids
        self._reuse = PrefixReuse(cache)
        self._places = Places(slots)
        # The collections themselves, as a step looks into them for every sequence.
        self._waiting, self._running = self._places.waiting, self._places.running
        self._prefilling, self._decoding = self._places.prefilling, self._places.decoding
        self._suspects = Suspects(self._places, in_prompt=prompts_in_pieces)
        self._deadlines = Deadlines(self._places.deadline_of)
        self._kept_out = False  # True if the limit alone kept requests out of the last plan
        self._events: list[Event] = []

    @property
    def limits(self) -> BatchLimits:
        """The configured limits in force."""
        return self._limits

    @property
    def running_limit(self) -> int:
        """Most sequences that may run at this moment; `adaptive` moves it between the configured bounds."""
        return self._limit.current

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._running)

    @property
    def free_slots(self) -> int:
        """Slots that no sequence holds."""
        return len(self._places.free)

    def set_limits(self, limits: BatchLimits, now: float) -> None:
        """Apply other limits from the next plan on; sequences above a lower one run to their end, none is dropped.

        Raises ValueError, and changes nothing, for more sequences than there are slots.
        """
        self._limits = limits.checked(self._slots)
        self._events += self._limit.set_limits(limits, now)

    def set_cache(self, budget_bytes: int, policy: Policy, now: float) -> None:
        """Resize the prefix cache at once; 0 bytes turn it off. Without a cache nothing happens."""
        self._reuse.set_cache(budget_bytes, policy)
        self._events += self._reuse.news(now)

    def add(self, request: GenerationRequest, now: float, *, suspect: bool = False) -> None:
        """Put a request into the queue. Raises ValueError if its id is already in use.

        suspect: an engine died while it computed the request, so its first steps are made while nothing else runs.
        """
        name = request.request_id
        if name in self._waiting or name in self._running:
            raise ValueError(f"request id {name!r} is already in use")
        deadline = None if request.timeout_s is None else now + request.timeout_s
        self._waiting.add(name, SequenceState(request, queued_at=now, deadline=deadline))
        if deadline is not None:
            self._deadlines.add(name, deadline, open_requests=len(self._waiting) + len(self._running))
        self._events.append(Queued(name, now, len(request.prompt)))
        if suspect:
            self._suspects.accuse(name)

    def finish(self, request_id: str, now: float, *, reason: str = "stop") -> None:
        """End a running request with a result, for example at a stop string. An ended request is ignored."""
        sequence = self._running.get(request_id)
        if sequence is not None:
            self._finish(sequence, reason, now)

    def fail(self, request_id: str, now: float, *, status: str, message: str) -> None:
        """End a request without a result and free its slot; see `Failed`. An ended request is ignored."""
        sequence = self._places.withdraw(request_id)
        if sequence is not None:
            self._events.append(Failed(request_id, now, status, message, sequence.queued_at))

    def fail_all(self, now: float, *, status: str, message: str) -> None:
        """End every request without a result, because the stack closes."""
        self._drop_step()
        for request_id in [*self._running, *self._waiting]:
            self.fail(request_id, now, status=status, message=message)

    def lose(self, request_id: str, now: float, *, message: str, suspect: bool = False) -> None:
        """Drop a request because its engine died; the stack decides if it runs again (see `Lost`)."""
        sequence = self._places.withdraw(request_id)
        if sequence is not None:
            self._events.append(Lost(request_id, now, message, sequence.queued_at, suspect))

    def lose_all(self, now: float, *, message: str, computed: Collection[int] | None = None) -> None:
        """Drop every request because the engine died, in the order of their admission and arrival.

        computed: slots that the fatal step computed; their requests are suspects. None for an engine that schedules
        itself: the suspects are the requests under test, or else all that run.
        """
        own = self._suspects.under_test() or self._running
        suspects = set(own if computed is None else self._places.names(computed))
        self._drop_step()
        for request_id in [*self._running, *self._waiting]:
            self.lose(request_id, now, message=message, suspect=request_id in suspects)

    @property
    def on_trial(self) -> bool:
        """True while suspects of a failed step, or of an engine's death, are tested."""
        return self._suspects.trial is not None

    def request_in(self, slot: int) -> GenerationRequest:
        """Return the request that holds a slot. Raises KeyError for a free slot."""
        return self._places.by_slot[slot].request

    def names_in(self, slots: Iterable[int]) -> list[str]:
        """Return the ids of the requests in these slots, without the free ones."""
        return self._places.names(slots)

    def take_events(self) -> list[Event]:
        """Return the events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _room(self) -> int:
        """Return the number of sequences that could join now."""
        return min(len(self._places.free), self._limit.current - len(self._running))

    def _next(self) -> SequenceState | None:
        """Return the request that joins next, if there is room for it."""
        if self._suspects.trial is not None:
            return self._suspects.next()
        return self._waiting.next() if self._waiting and self._room() > 0 else None

    def _may_admit(self, now: float) -> bool:
        if self._suspects.trial is not None:
            return True
        room = self._room()
        if not self._waiting or room <= 0:
            return False
        # If fewer than min_batch_size fit, the batch is as large as it can get once that many wait.
        return len(self._waiting) >= min(self._limits.min_batch_size, room) or now >= self._hold_end()

    def _hold_end(self) -> float:
        """Return when the oldest waiting request has been held back for the longest allowed time."""
        return self._waiting.oldest().queued_at + self._limits.timeout_s

    def _admit(self, sequence: SequenceState, now: float) -> int:
        """Give the sequence a slot."""
        if not sequence.reruns:
            sequence.admitted_at = now
            request = sequence.request
            self._events.append(Admitted(request.request_id, now, sequence.queued_at, len(request.prompt)))
        return self._places.enter(sequence)

    def _append(self, sequence: SequenceState, token: int, now: float) -> None:
        request = sequence.request
        if not sequence.output:
            sequence.first_token_at = now
        else:
            self._limit.gaps_s.append(now - sequence.last_token_at)
        sequence.last_token_at = now
        ends = token in self._eos and not request.ignore_eos
        self._events.append(Token(request.request_id, now, token, len(sequence.output)))
        sequence.output.append(token)
        if ends:
            self._finish(sequence, "stop", now)
        elif len(sequence.output) >= request.max_tokens:
            self._finish(sequence, "length", now)

    def _finish(self, sequence: SequenceState, reason: str, now: float) -> None:
        request = sequence.request
        if sequence.slot in self._decoding and len(sequence.output) > 1:
            self._reuse.keep(sequence.slot, [*request.prompt, *sequence.output[:-1]], request.cache_salt)
        self._places.leave(sequence)
        self._events.append(sequence.finished(reason, now))

    def _drop_step(self) -> None:
        """Forget the present step: the engine is dead, or the stack closes."""
        self._suspects.acquit_all()
        self._reuse.copied_in()

    def _expire(self, now: float) -> None:
        for name in self._deadlines.passed(now):
            self.fail(name, now, status="timeout", message="the request was not finished before its deadline")

    def _next_time(self) -> float | None:
        """Return when waiting ends if nothing is added: at the oldest request's hold, or at the first deadline."""
        times = [self._hold_end()] if self._waiting else []
        deadline = self._deadlines.first()
        if deadline is not None:
            times.append(deadline)
        return min(times, default=None)
