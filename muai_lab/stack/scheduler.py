"""The step-level scheduler: which sequences prefill, which decode, or until when to wait.

The flow is four verbs: `add` a request, `plan` the next step, `complete` it with the tokens that the engine returned,
and `take_events` to learn what happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from muai_lab.engines.base import KVBlock, PrefillChunk, PromptCompute
from muai_lab.stack.adaptive import StepSeen
from muai_lab.stack.batcher import Batcher
from muai_lab.stack.events import Step, StepFailed
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.plan import Plan
from muai_lab.stack.prefix_cache import PrefixCache
from muai_lab.stack.prefix_reuse import NO_MATCH, CopyOut
from muai_lab.stack.suspects import UNEXPLAINED


class Scheduler(Batcher):
    """The batcher of a step engine: it forms every step's batch of the sequences that run.

    Every running sequence either prefills (its prompt is not complete) or decodes, and each one that decodes is in
    every step. Neither a hold for a batch to form nor a long prompt therefore stalls it for longer than
    `max_prefill_tokens` take. Prompts are computed in the order of admission, a long one in pieces over several steps.
    The next plan releases the slots of ended sequences before anything else.
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
        """Start without requests.

        Args:
            limits: What the batcher may do.
            slots: Slots of the engine.
            eos_token_ids: Tokens that end a sequence.
            prompts: How the engine computes prompts, and so the cost of a step's prefill.
            cache: The prefix cache over the engine's slots; None if the engine cannot copy them.
        """
        super().__init__(
            limits,
            slots=slots,
            eos_token_ids=eos_token_ids,
            prompts_in_pieces=prompts is PromptCompute.PIECES,
            cache=cache,
        )
        self._prompts = prompts
        self._in_step: Plan | None = None

    def plan(self, now: float) -> Plan:
        """Plan the next step. A plan that computes must be completed, or its step failed, before the next one."""
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
        """Take in the step's outcome: the token that the engine produced for each slot.

        Slots whose sequence was cancelled while the step ran are ignored.
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

    def step_failed(self, computed: Sequence[int], *, began: float, now: float, message: str) -> None:
        """Take in that the step raised while it computed these slots, and that the engine has released all slots.

        Everything is computed again, suspects first (see `Trial`). If no slots were computed, a copy for the prefix
        cache failed: the cache is turned off.
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

    def _plan_prefill(self, now: float) -> list[PrefillChunk]:
        """Return pieces of the prompts in progress, then prompts that join, within the budget of the step."""
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
                # A prompt begins only if all of it still fits, or if it has a step to itself.
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

    def _drop_step(self) -> None:
        self._in_step = None
        super()._drop_step()
