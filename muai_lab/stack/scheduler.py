"""The step-level scheduler: which sequences prefill, which decode, or until when to wait.

Pure decisions on explicit time: no clock is read and nothing is awaited, so the same object runs against a real engine
and in virtual time. The flow is four verbs: `add` a request, `plan` the next step, `complete` it with the tokens that
the engine returned, and read the events that tell what happened.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from muai_lab.engines.base import KVBlock, PrefillChunk, PromptCompute
from muai_lab.stack.adaptive import LimitKeeper, StepSeen
from muai_lab.stack.deadlines import Deadlines
from muai_lab.stack.events import (
    Admitted,
    CacheLookup,
    Event,
    Failed,
    Lost,
    Queued,
    Step,
    Token,
)
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.plan import Plan
from muai_lab.stack.prefix_cache import Policy, PrefixCache
from muai_lab.stack.prefix_reuse import CopyOut, PrefixReuse
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.sequence import SequenceState
from muai_lab.stack.waiting import WaitingQueue


class Scheduler:
    """Admits waiting requests into slots, oldest first within a priority, and batches every step over those that run.

    Every running sequence either prefills (its prompt is not complete) or decodes, and every one that decodes is in
    every step: neither a hold for a batch to form nor a long prompt stalls it for longer than `max_prefill_tokens`
    take. Prompts are computed in the order of admission, a long one in pieces over several steps.

    Invariant: free slots + running sequences = slots. A slot is free as soon as its sequence ends, since the next plan
    tells the engine to release it before anything else.

    prompts: how the engine computes prompts, hence what a step's prefill costs. cache: of what its slots hold, None for
    an engine that cannot copy it, or that has a cache of its own.
    """

    def __init__(
        self,
        limits: BatchLimits,
        *,
        slots: int,
        eos_token_ids: frozenset[int] = frozenset(),
        prompts: PromptCompute = PromptCompute.PIECES,
        cache: PrefixCache | None = None,
    ) -> None:
        self._slots = slots
        self._limits = self._checked(limits)
        self._limit = LimitKeeper(limits)
        self._prompts = prompts
        self._eos = eos_token_ids
        self._reuse = PrefixReuse(cache)
        self._waiting: WaitingQueue[SequenceState] = WaitingQueue()
        self._running: dict[str, SequenceState] = {}
        self._by_slot: dict[int, SequenceState] = {}
        self._prefilling: dict[int, SequenceState] = {}  # by slot, in the order of admission
        self._decoding: dict[int, SequenceState] = {}  # by slot
        self._free = list(range(slots))  # a heap: low slots are reused first, so rows stay dense
        self._deadlines = Deadlines(self._deadline_of)
        self._in_step: Plan | None = None
        self._kept_out = False  # whether the limit alone kept requests out of the last plan
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
        self._events += self._limit.set_limits(limits, now)

    def set_cache(self, budget_bytes: int, policy: Policy, now: float) -> None:
        """Give the prefix cache more or less room, at once; 0 turns it off. Without a cache nothing happens."""
        self._reuse.set_cache(budget_bytes, policy)
        self._events += self._reuse.news(now)

    def add(self, request: GenerationRequest, now: float) -> None:
        """Put a request into the queue. Raises ValueError if its id is already in use."""
        name = request.request_id
        if name in self._waiting or name in self._running:
            raise ValueError(f"request id {name!r} is already in use")
        deadline = None if request.timeout_s is None else now + request.timeout_s
        self._waiting.add(name, SequenceState(request, queued_at=now, deadline=deadline))
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
        self._reuse.copied_in()
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
        self._reuse.copied_in()
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
        copy_out, copy_in = self._reuse.copies()
        if not prefill and not decode:
            return Plan(release, wait_until=self._next_time(), copy_out=copy_out)
        self._in_step = Plan(release, prefill, decode, copy_out=copy_out, copy_in=copy_in)
        return self._in_step

    def copied_out(self, copy: CopyOut, payloads: Sequence[KVBlock]) -> None:
        """Take in the blocks that the engine copied out of a slot, as the plan asked."""
        self._reuse.copied_out(copy, payloads)

    def complete(self, tokens: Mapping[int, int], *, began: float, now: float) -> None:
        """Take in the step's outcome: the token that the engine produced for each slot of the plan.

        Slots whose sequence ended while the step ran (cancelled) are ignored.
        """
        plan, self._in_step = self._in_step, None
        if plan is None:
            raise RuntimeError("there is no plan to complete")
        self._reuse.copied_in()
        ran = len(self._running)
        for chunk in plan.prefill:
            sequence = self._prefilling.get(chunk.slot)
            if sequence is not None:
                sequence.computed += len(chunk.tokens)
                if chunk.final:
                    self._decoding[chunk.slot] = self._prefilling.pop(chunk.slot)
                    self._reuse.keep(chunk.slot, sequence.request.prompt, sequence.request.cache_salt)
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
        self._events += self._reuse.news(now)
        self._events += self._limit.observe(StepSeen(began, now, len(tokens), ran, self._kept_out))

    def admit(self, now: float) -> Plan:
        """What joins now, for an engine that schedules its own steps; their tokens come through `take`.

        The plan holds one chunk for each request that joins and nothing to decode, and needs no completion.
        """
        self._expire(now)
        prefill = []
        if self._may_admit(now):
            while self._waiting and self._room() > 0:
                sequence = self._waiting.next()
                self._admit(sequence, now)
                prefill.append(sequence.chunk(len(sequence.request.prompt)))
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
        self._events += self._limit.observe(StepSeen(began, now, tokens, len(self._running), self._kept_out))

    def note_cached(self, request_id: str, cached_tokens: int, now: float) -> None:
        """Record how many prompt tokens of a running request came from a prefix cache; call it once a request."""
        sequence = self._running.get(request_id)
        if sequence is not None:
            self._events.append(CacheLookup(request_id, now, len(sequence.request.prompt), cached_tokens))

    def output_tokens(self, request_id: str) -> int | None:
        """Tokens that a running request has produced so far; None if it does not run."""
        sequence = self._running.get(request_id)
        return None if sequence is None else len(sequence.output)

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
                chunks.append(sequence.chunk(budget))
                budget -= len(chunks[-1].tokens)
        if self._may_admit(now):
            longest = 0
            while self._waiting and self._room() > 0:
                sequence = self._waiting.next()
                match = self._reuse.find(sequence.request)
                left = len(sequence.request.prompt) - match.tokens
                longest = max(longest, left)
                cost = (len(chunks) + 1) * longest if self._prompts is PromptCompute.PADDED else longest
                # A prompt is begun where all of it still fits, or where it has a step to itself.
                if chunks and cost > budget:
                    self._reuse.drop(match)
                    break
                self._reuse.use(match, self._admit(sequence, now))
                sequence.computed = match.tokens
                self._events += self._reuse.looked_up(sequence.request, match, now)
                chunks.append(sequence.chunk(budget if self._prompts is PromptCompute.PIECES else left))
                if self._prompts is not PromptCompute.PADDED:
                    budget -= len(chunks[-1].tokens)
                    longest = 0
        self._kept_out = bool(self._waiting) and self._room() <= 0
        return chunks

    def _admit(self, sequence: SequenceState, now: float) -> int:
        """Give the sequence a slot."""
        request = sequence.request
        name = request.request_id
        self._waiting.pop(name)
        slot = heapq.heappop(self._free)
        sequence.slot, sequence.admitted_at = slot, now
        self._running[name] = self._by_slot[slot] = self._prefilling[slot] = sequence
        self._events.append(Admitted(name, now, sequence.queued_at, len(request.prompt)))
        return slot

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
        self._leave(sequence)
        self._events.append(sequence.finished(reason, now))

    def _leave(self, sequence: SequenceState) -> None:
        if sequence.slot is not None:
            del self._running[sequence.request.request_id]
            del self._by_slot[sequence.slot]
            if self._decoding.pop(sequence.slot, None) is None:
                del self._prefilling[sequence.slot]
            heapq.heappush(self._free, sequence.slot)
            self._released.append(sequence.slot)
            sequence.slot = None

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
