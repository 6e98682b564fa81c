"""The step-level scheduler: which sequences prefill, which decode, or until when to wait.

Pure decisions on explicit time: no clock is read and nothing is awaited, so the same object runs against a real engine
and in virtual time. The flow is four verbs: `add` a request, `plan` the next step, `complete` it with the tokens that
the engine returned, and read the events that tell what happened.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muai_lab.engines.base import PrefillChunk, PromptCompute
from muai_lab.stack.adaptive import FixedLimit, StepSeen, running_limit
from muai_lab.stack.deadlines import Deadlines
from muai_lab.stack.events import (
    Admitted,
    CacheLookup,
    Event,
    Failed,
    Finished,
    LimitMoved,
    Lost,
    Queued,
    Step,
    Token,
)
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.waiting import WaitingQueue


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
    """One request on its way. computed: prompt tokens that its slot holds. last_token_at: 0 before the first."""

    request: GenerationRequest
    queued_at: float
    deadline: float | None
    slot: int | None = None
    computed: int = 0
    admitted_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    output_tokens: int = 0

    @property
    def priority(self) -> int:
        return self.request.priority


class Scheduler:
    """Admits waiting requests into slots, oldest first within a priority, and batches every step over those that run.

    Every running sequence either prefills (its prompt is not complete) or decodes, and every one that decodes is in
    every step: neither a hold for a batch to form nor a long prompt stalls it for longer than `max_prefill_tokens`
    take. Prompts are computed in the order of admission, a long one in pieces over several steps.

    Invariant: free slots + running sequences = slots. A slot is free as soon as its sequence ends, since the next plan
    tells the engine to release it before anything else.

    prompts: how the engine computes prompts, hence what a step's prefill costs.
    """

    def __init__(
        self,
        limits: BatchLimits,
        *,
        slots: int,
        eos_token_ids: frozenset[int] = frozenset(),
        prompts: PromptCompute = PromptCompute.PIECES,
    ) -> None:
        self._slots = slots
        self._limits = self._checked(limits)
        self._limit = running_limit(limits)
        self._prompts = prompts
        self._eos = eos_token_ids
        self._waiting: WaitingQueue[_Sequence] = WaitingQueue()
        self._running: dict[str, _Sequence] = {}
        self._by_slot: dict[int, _Sequence] = {}
        self._prefilling: dict[int, _Sequence] = {}  # by slot, in the order of admission
        self._decoding: dict[int, _Sequence] = {}  # by slot
        self._free = list(range(slots))  # a heap: low slots are reused first, so rows stay dense
        self._deadlines = Deadlines(self._deadline_of)
        self._in_step: Plan | None = None
        self._kept_out = False  # whether the limit alone kept requests out of the last plan
        self._gaps_s: list[float] = []  # between tokens of one sequence, since the limit was last told
        self._released: list[int] = []
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
        return len(self._free)

    def set_limits(self, limits: BatchLimits, now: float) -> None:
        """Work within other limits from the next plan on; sequences above a lower one run out, none is dropped.

        Raises ValueError, and changes nothing, for more than there are slots.
        """
        self._limits = self._checked(limits)
        before, wanted = self._limit.current, running_limit(limits)
        if type(wanted) is type(self._limit):
            self._limit.set_limits(limits)
        else:
            self._limit = wanted
        self._tell_limit(before, "the limits were changed", now)

    def add(self, request: GenerationRequest, now: float) -> None:
        """Put a request into the queue. Raises ValueError if its id is already in use."""
        name = request.request_id
        if name in self._waiting or name in self._running:
            raise ValueError(f"request id {name!r} is already in use")
        deadline = None if request.timeout_s is None else now + request.timeout_s
        self._waiting.add(name, _Sequence(request, queued_at=now, deadline=deadline))
        if deadline is not None:
            self._deadlines.add(name, deadline, open_requests=len(self._waiting) + len(self._running))
        self._events.append(Queued(name, now, len(request.prompt)))

    def finish(self, request_id: str, now: float, *, reason: str = "stop") -> None:
        """End a running request with a result: its text met a stop string, say. An ended request is ignored."""
        sequence = self._running.get(request_id)
        if sequence is not None:
            self._finish(sequence, reason, now)

    def fail(self, request_id: str, now: float, *, status: str, message: str) -> None:
        """End a request without a result (`cancelled`, `timeout`, `error`) and free its slot; ended ones: nothing."""
        sequence = self._waiting.pop(request_id) or self._running.get(request_id)
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
        sequence = self._waiting.pop(request_id) or self._running.get(request_id)
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
        decode = tuple(self._decoding)
        prefill = tuple(self._plan_prefill(now)) if self._prefilling or self._waiting else ()
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
        ran = len(self._running)
        for chunk in plan.prefill:
            sequence = self._prefilling.get(chunk.slot)
            if sequence is not None:
                sequence.computed += len(chunk.tokens)
                if chunk.final:
                    self._decoding[chunk.slot] = self._prefilling.pop(chunk.slot)
        for slot, token in tokens.items():
            sequence = self._decoding.get(slot)
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
                limit=self._limit.current,
            )
        )
        self._adapt(StepSeen(began, now, len(tokens), ran, self._kept_out))

    def admit(self, now: float) -> Plan:
        """What joins now, for an engine that schedules its own steps; their tokens come through `take`.

        The plan holds one chunk for each request that joins and nothing to decode, and needs no completion.
        """
        self._expire(now)
        prefill = []
        if self._may_admit(now):
            while self._waiting and self._room() > 0:
                sequence = self._admit(self._waiting.next(), now)
                prefill.append(self._chunk(sequence, len(sequence.request.prompt)))
                self._decoding[prefill[-1].slot] = self._prefilling.pop(prefill[-1].slot)
        self._kept_out = bool(self._waiting) and self._room() <= 0
        self._released.clear()  # nobody needs to be told: the engine has no slots of ours
        return Plan(prefill=tuple(prefill), wait_until=self._next_time())

    def take(self, request_id: str, tokens: Sequence[int], now: float) -> None:
        """Append the tokens that an engine which schedules itself produced; those of an ended request are ignored.

        `end_turn` says when those of one step are complete.
        """
        for token in tokens:
            sequence = self._running.get(request_id)
            if sequence is None:
                return
            self._append(sequence, token, now)

    def end_turn(self, tokens: int, *, began: float, now: float) -> None:
        """What an engine that schedules itself reported between `began` and `now` is taken in: `tokens` tokens."""
        self._adapt(StepSeen(began, now, tokens, len(self._running), self._kept_out))

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

    def _checked(self, limits: BatchLimits) -> BatchLimits:
        if limits.max_batch_size > self._slots:
            raise ValueError(f"max_batch_size {limits.max_batch_size} is more than the engine's {self._slots} slots")
        return limits

    def _room(self) -> int:
        """Sequences that could join now."""
        return min(len(self._free), self._limit.current - len(self._running))

    def _may_admit(self, now: float) -> bool:
        room = self._room()
        if not self._waiting or room <= 0:
            return False
        # Where fewer than min_batch_size fit, the batch is as large as it can get once these wait.
        enough = min(self._limits.min_batch_size, room)
        return len(self._waiting) >= enough or now >= self._hold_end()

    def _hold_end(self) -> float:
        """When the oldest waiting request has been held back for as long as is allowed."""
        return self._waiting.oldest().queued_at + self._limits.timeout_s

    def _plan_prefill(self, now: float) -> list[PrefillChunk]:
        """Pieces of the prompts under way, then prompts that join, as far as the step's budget reaches."""
        budget = self._limits.max_prefill_tokens
        chunks: list[PrefillChunk] = []
        for sequence in self._prefilling.values():
            if budget > 0:
                chunks.append(self._chunk(sequence, budget))
                budget -= len(chunks[-1].tokens)
        if self._may_admit(now):
            longest = 0
            while self._waiting and self._room() > 0:
                sequence = self._waiting.next()
                longest = max(longest, len(sequence.request.prompt))
                cost = (len(chunks) + 1) * longest if self._prompts is PromptCompute.PADDED else longest
                # A prompt is begun where all of it still fits, or where it has a step to itself.
                if chunks and cost > budget:
                    break
                self._admit(sequence, now)
                cuts = self._prompts is PromptCompute.PIECES
                chunks.append(self._chunk(sequence, budget if cuts else len(sequence.request.prompt)))
                if self._prompts is not PromptCompute.PADDED:
                    budget -= len(chunks[-1].tokens)
                    longest = 0
        self._kept_out = bool(self._waiting) and self._room() <= 0
        return chunks

    def _admit(self, sequence: _Sequence, now: float) -> _Sequence:
        request = sequence.request
        name = request.request_id
        self._waiting.pop(name)
        slot = heapq.heappop(self._free)
        sequence.slot, sequence.admitted_at = slot, now
        self._running[name] = self._by_slot[slot] = self._prefilling[slot] = sequence
        self._events.append(Admitted(name, now, sequence.queued_at, len(request.prompt)))
        return sequence

    def _chunk(self, sequence: _Sequence, budget: int) -> PrefillChunk:
        """The next piece of a prompt, of at most `budget` tokens."""
        assert sequence.slot is not None
        request, start = sequence.request, sequence.computed
        left = len(request.prompt) - start
        if left <= budget:
            tokens = request.prompt[start:] if start else request.prompt
            return PrefillChunk(sequence.slot, tokens, start, sampling=request.sampling)
        tokens = request.prompt[start : start + budget]
        return PrefillChunk(sequence.slot, tokens, start, final=False, sampling=request.sampling)

    def _append(self, sequence: _Sequence, token: int, now: float) -> None:
        request = sequence.request
        if sequence.output_tokens == 0:
            sequence.first_token_at = now
        else:
            self._gaps_s.append(now - sequence.last_token_at)
        sequence.last_token_at = now
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
            if self._decoding.pop(sequence.slot, None) is None:
                del self._prefilling[sequence.slot]
            heapq.heappush(self._free, sequence.slot)
            self._released.append(sequence.slot)
            sequence.slot = None

    def _adapt(self, step: StepSeen) -> None:
        gaps_s, self._gaps_s = self._gaps_s, []
        if isinstance(self._limit, FixedLimit):
            return
        before = self._limit.current
        reason = self._limit.observe(step, gaps_s)
        if reason is not None:
            self._tell_limit(before, reason, step.ended)

    def _tell_limit(self, before: int, reason: str, now: float) -> None:
        after = self._limit.current
        if after != before:
            self._events.append(LimitMoved(now, before, after, reason))

    def _expire(self, now: float) -> None:
        for name in self._deadlines.passed(now):
            self.fail(name, now, status="timeout", message="the request was not finished before its deadline")

    def _next_time(self) -> float | None:
        """When waiting ends if nothing is added: the oldest request's hold, or the first deadline."""
        times = [self._hold_end()] if self._waiting else []
        deadline = self._deadlines.first()
        if deadline is not None:
            times.append(deadline)
        return min(times, default=None)

    def _deadline_of(self, name: str) -> float | None:
        sequence = self._waiting.get(name) or self._running.get(name)
        return None if sequence is None else sequence.deadline
