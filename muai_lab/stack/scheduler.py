"""The step-level scheduler: which sequences prefill, which decode, or until when to wait.

Pure decisions on explicit time: no clock is read and nothing is awaited, so the same object runs against a real engine
and in virtual time. The flow is four verbs: `add` a request, `plan` the next step, `complete` it with the tokens that
the engine returned, and read the events that tell what happened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

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
    StepFailed,
    Token,
)
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.places import Places
from muai_lab.stack.plan import Plan
from muai_lab.stack.prefix_cache import Policy, PrefixCache
from muai_lab.stack.prefix_reuse import NO_MATCH, CopyOut, PrefixReuse
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.sequence import SequenceState
from muai_lab.stack.suspects import UNEXPLAINED, Suspects


class Scheduler:
    """Admits waiting requests into slots, oldest first within a priority, and batches every step over those that run.

    Every running sequence either prefills (its prompt is not complete) or decodes, and every one that decodes is in
    every step: neither a hold for a batch to form nor a long prompt stalls it for longer than `max_prefill_tokens`
    take. Prompts are computed in the order of admission, a long one in pieces over several steps.

    A slot is free as soon as its sequence ends, since the next plan has it released before anything else.

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
        self._limits = limits.checked(slots)
        self._limit = LimitKeeper(limits)
        self._prompts = prompts
        self._eos = eos_token_ids
        self._reuse = PrefixReuse(cache)
        self._places = Places(slots)
        # The collections themselves, as a step looks into them for every sequence.
        self._waiting, self._running = self._places.waiting, self._places.running
        self._prefilling, self._decoding = self._places.prefilling, self._places.decoding
        self._suspects = Suspects(self._places, in_prompt=prompts is PromptCompute.PIECES)
        self._deadlines = Deadlines(self._places.deadline_of)
        self._in_step: Plan | None = None
        self._kept_out = False  # whether the limit alone kept requests out of the last plan
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
        """Work within other limits from the next plan on; sequences above a lower one run out, none is dropped.

        Raises ValueError, and changes nothing, for more than there are slots.
        """
        self._limits = limits.checked(self._slots)
        self._events += self._limit.set_limits(limits, now)

    def set_cache(self, budget_bytes: int, policy: Policy, now: float) -> None:
        """Give the prefix cache more or less room, at once; 0 turns it off. Without a cache nothing happens."""
        self._reuse.set_cache(budget_bytes, policy)
        self._events += self._reuse.news(now)

    def add(self, request: GenerationRequest, now: float, *, suspect: bool = False) -> None:
        """Put a request into the queue. Raises ValueError if its id is already in use.

        suspect: an engine has died while it computed the request: its first steps are made while nothing else runs.
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
        """End a running request with a result: its text met a stop string, say. An ended request is ignored."""
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
        """Give a request up because its engine died; whoever hears of it decides what becomes of it."""
        sequence = self._places.withdraw(request_id)
        if sequence is not None:
            self._events.append(Lost(request_id, now, message, sequence.queued_at, suspect))

    def lose_all(self, now: float, *, message: str, computed: Collection[int] | None = None) -> None:
        """Give every request up because the engine died, in the order of their admission and arrival.

        computed: slots that the fatal step computed; their requests are suspects. None, for an engine that schedules
        itself: those under test, else all that run.
        """
        own = self._suspects.under_test() or self._running
        suspects = set(own if computed is None else self._places.names(computed))
        self._drop_step()
        for request_id in [*self._running, *self._waiting]:
            self.lose(request_id, now, message=message, suspect=request_id in suspects)

    def step_failed(self, computed: Sequence[int], *, began: float, now: float, message: str) -> None:
        """Take in that the step raised while it computed these slots, and that the engine has forgotten all slots.

        Everything is computed again, suspects first (see `Trial`). Without slots it was a copy for the prefix cache
        that failed: the cache is turned off.
        """
        self._in_step = None
        self._reuse.forget()
        if not computed:
            self._reuse.turn_off()
        names = self._places.names(computed)
        culprit = self._suspects.step_failed(names)
        self._events.append(StepFailed(now, began, len(names), message, culprit))
        if culprit is not None:
            self.fail(culprit, now, status="error", message=message)

    @property
    def on_trial(self) -> bool:
        """True while suspects of a failed step, or of an engine's death, are tested."""
        return self._suspects.trial is not None

    def plan(self, now: float) -> Plan:
        """What to do next. A plan that computes must be completed (or everything failed) before the next one."""
        if self._in_step is not None:
            raise RuntimeError("the last plan was not completed")
        self._expire(now)
        if self._suspects.trial is not None:
            for name in self._suspects.advance(pausing=True):
                self.fail(name, now, status="error", message=UNEXPLAINED)
        decode = tuple(self._decoding) if self._suspects.trial is None else self._suspects.tested(self._decoding)
        prefill = tuple(self._plan_prefill(now)) if self._prefilling or self._waiting else ()
        release = self._places.take_released()
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
                    if not sequence.reruns:
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
        if self._suspects.trial is None:
            self._events += self._limit.observe(StepSeen(began, now, len(tokens), ran, self._kept_out))

    def admit(self, now: float) -> Plan:
        """What joins now, for an engine that schedules its own steps; their tokens come through `take`.

        The plan holds one chunk for each request that joins and nothing to decode, and needs no completion.
        """
        self._expire(now)
        for name in self._suspects.advance(pausing=False):
            self.fail(name, now, status="error", message=UNEXPLAINED)
        prefill = []
        if self._may_admit(now):
            while (sequence := self._next()) is not None:
                self._admit(sequence, now)
                prefill.append(sequence.chunk(len(sequence.prompt)))
                self._decoding[prefill[-1].slot] = self._prefilling.pop(prefill[-1].slot)
        self._kept_out = bool(self._waiting) and self._room() <= 0
        self._places.released.clear()  # nobody needs to be told: the engine has no slots of ours
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
        return self._places.by_slot[slot].request

    def names_in(self, slots: Iterable[int]) -> list[str]:
        """The requests in these slots; free ones are left out."""
        return self._places.names(slots)

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _room(self) -> int:
        """Sequences that could join now."""
        return min(len(self._places.free), self._limit.current - len(self._running))

    def _next(self) -> SequenceState | None:
        """The request that joins next, if there is room for it."""
        if self._suspects.trial is not None:
            return self._suspects.next()
        return self._waiting.next() if self._waiting and self._room() > 0 else None

    def _may_admit(self, now: float) -> bool:
        if self._suspects.trial is not None:
            return True
        room = self._room()
        if not self._waiting or room <= 0:
            return False
        # Where fewer than min_batch_size fit, the batch is as large as it can get once these wait.
        return len(self._waiting) >= min(self._limits.min_batch_size, room) or now >= self._hold_end()

    def _hold_end(self) -> float:
        """When the oldest waiting request has been held back for as long as is allowed."""
        return self._waiting.oldest().queued_at + self._limits.timeout_s

    def _plan_prefill(self, now: float) -> list[PrefillChunk]:
        """Pieces of the prompts under way, then prompts that join, as far as the step's budget reaches."""
        budget = self._limits.max_prefill_tokens
        chunks: list[PrefillChunk] = []
        slots = self._prefilling if self._suspects.trial is None else self._suspects.tested(self._prefilling)
        for slot in slots:
            if budget > 0:
                chunks.append(self._prefilling[slot].chunk(budget))
                budget -= len(chunks[-1].tokens)
        if self._may_admit(now):
            longest = 0
            while (sequence := self._next()) is not None:
                match = self._reuse.find(sequence.request) if not sequence.reruns else NO_MATCH
                left = len(sequence.prompt) - match.tokens
                longest = max(longest, left)
                cost = (len(chunks) + 1) * longest if self._prompts is PromptCompute.PADDED else longest
                # A prompt is begun where all of it still fits, or where it has a step to itself.
                if chunks and cost > budget:
                    self._reuse.drop(match)
                    break
                self._reuse.use(match, self._admit(sequence, now))
                sequence.computed = match.tokens
                if not sequence.reruns:
                    self._events += self._reuse.looked_up(sequence.request, match, now)
                chunks.append(sequence.chunk(budget if self._prompts is PromptCompute.PIECES else left))
                if self._prompts is not PromptCompute.PADDED:
                    budget -= len(chunks[-1].tokens)
                    longest = 0
        self._kept_out = bool(self._waiting) and self._room() <= 0
        return chunks

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
        self._in_step = None
        self._suspects.acquit_all()
        self._reuse.copied_in()

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
