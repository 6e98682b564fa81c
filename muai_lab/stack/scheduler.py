"""The step-level scheduler: which sequences prefill, which decode, or until when to wait.

Pure decisions on explicit time: no clock is read and nothing is awaited, so the same object runs against a real engine
and in virtual time. The flow is four verbs: `add` a request, `plan` the next step, `complete` it with the tokens that
the engine returned, and read the events that tell what happened.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muai_lab.engines.base import PrefillChunk
from muai_lab.stack.events import Admitted, CacheLookup, Event, Failed, Finished, Lost, Queued, Step, Token
from muai_lab.stack.request import GenerationRequest

_SPARE_DEADLINES = 64  # deadlines of ended requests that are not worth sweeping out


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What the batcher may do.

    max_batch_size: most sequences that run at once (<= the engine's slots). min_batch_size: a batch starts once this
    many wait. timeout_s: or once the oldest has waited this long. max_prefill_tokens: prompt tokens admitted into one
    step (at least one sequence always is), which bounds how long running sequences stand still.
    """

    max_batch_size: int
    min_batch_size: int = 1
    timeout_s: float = 0.0
    max_prefill_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step: free the slots in `release`, then decode, and prefill what joins.

    Nothing to prefill or decode: sleep until `wait_until`, or until something is added (None).
    """

    release: tuple[int, ...] = ()
    prefill: tuple[PrefillChunk, ...] = ()
    decode: tuple[int, ...] = ()
    wait_until: float | None = None

    @property
    def empty(self) -> bool:
        """True if there is nothing for the engine to do."""
        return not self.prefill and not self.decode


@dataclass(slots=True, eq=False)
class _Sequence:
    request: GenerationRequest
    queued_at: float
    deadline: float | None
    slot: int | None = None
    admitted_at: float = 0.0
    first_token_at: float = 0.0
    output_tokens: int = 0


class Scheduler:
    """Admits waiting requests first-in, first-out into slots and batches every step over the running ones.

    Prefill and decode may be in one plan, so a hold for a batch to form never stalls sequences that are already
    decoding. Invariant: free slots + running sequences = slots. A slot is free as soon as
    its sequence ends, since the next plan tells the engine to release it before anything else.
    """

    def __init__(self, limits: BatchLimits, *, slots: int, eos_token_ids: frozenset[int] = frozenset()) -> None:
        if limits.max_batch_size > slots:
            raise ValueError(f"max_batch_size {limits.max_batch_size} is more than the engine's {slots} slots")
        self.limits = limits
        self._eos = eos_token_ids
        self._waiting: OrderedDict[str, _Sequence] = OrderedDict()  # in order of arrival
        self._running: dict[str, _Sequence] = {}
        self._by_slot: dict[int, _Sequence] = {}
        self._free = list(range(slots))  # a heap: low slots are reused first, so rows stay dense
        self._deadlines: list[tuple[float, str]] = []
        self._in_step: Plan | None = None
        self._released: list[int] = []
        self._events: list[Event] = []

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
        return len(self._free)

    def add(self, request: GenerationRequest, now: float) -> None:
        """Put a request at the end of the queue. Raises ValueError if its id is already in use."""
        name = request.request_id
        if name in self._waiting or name in self._running:
            raise ValueError(f"request id {name!r} is already in use")
        deadline = None if request.timeout_s is None else now + request.timeout_s
        self._waiting[name] = _Sequence(request, queued_at=now, deadline=deadline)
        if deadline is not None:
            self._forget_ended_deadlines()
            heapq.heappush(self._deadlines, (deadline, name))
        self._events.append(Queued(name, now, len(request.prompt)))

    def finish(self, request_id: str, now: float, *, reason: str = "stop") -> None:
        """End a running request with a result: its text met a stop string, say. An ended request is ignored."""
        sequence = self._running.get(request_id)
        if sequence is not None:
            self._finish(sequence, reason, now)

    def fail(self, request_id: str, now: float, *, status: str, message: str) -> None:
        """End a request without a result (`cancelled`, `timeout`, `error`) and free its slot; ended ones: nothing."""
        sequence = self._waiting.pop(request_id, None) or self._running.get(request_id)
        if sequence is None:
            return
        self._leave(sequence)
        self._events.append(Failed(request_id, now, status, message, sequence.queued_at))

    def fail_all(self, now: float, *, status: str, message: str) -> None:
        """End every request without a result, because the stack closes."""
        self._in_step = None
        for request_id in [*self._running, *self._waiting]:
            self.fail(request_id, now, status=status, message=message)

    def lose(self, request_id: str, now: float, *, message: str) -> None:
        """Give a request up because its engine died; whoever hears of it decides what becomes of it."""
        sequence = self._waiting.pop(request_id, None) or self._running.get(request_id)
        if sequence is not None:
            self._leave(sequence)
            self._events.append(Lost(request_id, now, message, sequence.queued_at))

    def lose_all(self, now: float, *, message: str) -> None:
        """Give every request up because the engine died, in the order of their admission and arrival."""
        self._in_step = None
        for request_id in [*self._running, *self._waiting]:
            self.lose(request_id, now, message=message)

    def plan(self, now: float) -> Plan:
        """What to do next. A plan that computes must be completed (or everything failed) before the next one."""
        if self._in_step is not None:
            raise RuntimeError("the last plan was not completed")
        self._expire(now)
        decode = tuple(sequence.slot for sequence in self._running.values() if sequence.slot is not None)
        prefill = tuple(self._admit(now)) if self._may_admit(now) else ()
        release, self._released = tuple(self._released), []
        if not prefill and not decode:
            return Plan(release, wait_until=self._next_time())
        self._in_step = Plan(release, prefill, decode)
        return self._in_step

    def complete(self, tokens: Mapping[int, int], *, began: float, now: float) -> None:
        """Take in the step's outcome: the token that the engine produced for each slot of the plan.

        Slots whose sequence ended while the step ran (cancelled) are ignored.
        """
        plan, self._in_step = self._in_step, None
        if plan is None:
            raise RuntimeError("there is no plan to complete")
        for slot, token in tokens.items():
            sequence = self._by_slot.get(slot)
            if sequence is not None:
                self._append(sequence, token, now)
        self._events.append(
            Step(
                at=now,
                began=began,
                batch=len(plan.prefill) + len(plan.decode),
                prefill_tokens=sum(len(chunk.tokens) for chunk in plan.prefill),
                decode_tokens=len(plan.decode),
                running=len(self._running),
                waiting=len(self._waiting),
            )
        )

    def admit(self, now: float) -> Plan:
        """What joins now, for an engine that schedules its own steps; their tokens come through `take`.

        The plan holds one chunk for each request that joins and nothing to decode, and needs no completion.
        """
        self._expire(now)
        prefill = tuple(self._admit(now)) if self._may_admit(now) else ()
        self._released.clear()  # nobody needs to be told: the engine has no slots of ours
        return Plan(prefill=prefill, wait_until=self._next_time())

    def take(self, request_id: str, tokens: Sequence[int], now: float) -> None:
        """Append the tokens that an engine which schedules itself produced; those of an ended request are ignored."""
        for token in tokens:
            sequence = self._running.get(request_id)
            if sequence is None:
                return
            self._append(sequence, token, now)

    def note_cached(self, request_id: str, cached_tokens: int, now: float) -> None:
        """Record how many prompt tokens of a running request came from a prefix cache; call it once a request."""
        sequence = self._running.get(request_id)
        if sequence is not None:
            self._events.append(CacheLookup(request_id, now, len(sequence.request.prompt), cached_tokens))

    def output_tokens(self, request_id: str) -> int | None:
        """Tokens that a running request has produced so far; None if it does not run."""
        sequence = self._running.get(request_id)
        return None if sequence is None else sequence.output_tokens

    def request_in(self, slot: int) -> GenerationRequest:
        """The request that holds a slot. Raises KeyError for a free one."""
        return self._by_slot[slot].request

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _room(self) -> int:
        """Sequences that could join now."""
        return min(len(self._free), self.limits.max_batch_size - len(self._running))

    def _may_admit(self, now: float) -> bool:
        room = self._room()
        if not self._waiting or room <= 0:
            return False
        # Where fewer than min_batch_size fit, the batch is as large as it can get once these wait.
        enough = min(self.limits.min_batch_size, room)
        return len(self._waiting) >= enough or now >= self._hold_end()

    def _hold_end(self) -> float:
        """When the oldest waiting request has been held back for as long as is allowed."""
        return next(iter(self._waiting.values())).queued_at + self.limits.timeout_s

    def _admit(self, now: float) -> list[PrefillChunk]:
        chunks: list[PrefillChunk] = []
        budget = self.limits.max_prefill_tokens
        while self._waiting and self._room() > 0:
            name, sequence = next(iter(self._waiting.items()))
            request = sequence.request
            if chunks and len(request.prompt) > budget:
                break
            budget -= len(request.prompt)
            self._waiting.popitem(last=False)
            slot = heapq.heappop(self._free)
            sequence.slot, sequence.admitted_at = slot, now
            self._running[name] = sequence
            self._by_slot[slot] = sequence
            chunks.append(PrefillChunk(slot, request.prompt, sampling=request.sampling))
            self._events.append(Admitted(name, now, sequence.queued_at, len(request.prompt)))
        return chunks

    def _append(self, sequence: _Sequence, token: int, now: float) -> None:
        request = sequence.request
        if sequence.output_tokens == 0:
            sequence.first_token_at = now
        ends = token in self._eos and not request.ignore_eos
        sequence.output_tokens += 1
        self._events.append(Token(request.request_id, now, token, sequence.output_tokens - 1))
        if ends:
            self._finish(sequence, "stop", now)
        elif sequence.output_tokens >= request.max_tokens:
            self._finish(sequence, "length", now)

    def _finish(self, sequence: _Sequence, reason: str, now: float) -> None:
        self._leave(sequence)
        self._events.append(
            Finished(
                sequence.request.request_id,
                now,
                reason,
                len(sequence.request.prompt),
                sequence.output_tokens,
                sequence.queued_at,
                sequence.admitted_at,
                sequence.first_token_at,
            )
        )

    def _leave(self, sequence: _Sequence) -> None:
        if sequence.slot is not None:
            del self._running[sequence.request.request_id]
            del self._by_slot[sequence.slot]
            heapq.heappush(self._free, sequence.slot)
            self._released.append(sequence.slot)
            sequence.slot = None

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = heapq.heappop(self._deadlines)
            if self._is_open(entry):
                self.fail(entry[1], now, status="timeout", message="the request was not finished before its deadline")

    def _next_time(self) -> float | None:
        """When waiting ends if nothing is added: the oldest request's hold, or the first deadline."""
        times = [self._hold_end()] if self._waiting else []
        while self._deadlines and not self._is_open(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        if self._deadlines:
            times.append(self._deadlines[0][0])
        return min(times, default=None)

    def _forget_ended_deadlines(self) -> None:
        """Drop the deadlines of ended requests once they are most of the heap, which else grows with the traffic."""
        if len(self._deadlines) > 2 * (len(self._waiting) + len(self._running)) + _SPARE_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if self._is_open(entry)]
            heapq.heapify(self._deadlines)

    def _is_open(self, entry: tuple[float, str]) -> bool:
        deadline, name = entry
        sequence = self._waiting.get(name) or self._running.get(name)
        return sequence is not None and sequence.deadline == deadline
