"""What holds for the scheduler under any traffic, in virtual time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from muai_lab.engines.base import PromptCompute
from muai_lab.stack.events import Admitted, CacheLookup, CacheState, Failed, Finished, LimitMoved, Lost, Queued, Token
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.plan import Plan
from muai_lab.stack.prefix_cache import PrefixCache
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.scheduler import Scheduler
from muai_lab.stack.waiting import AGING_S

END = 0
FAR = 10_000  # steps within which any of these workloads must be through
BLOCK = 2
BLOCK_BYTES = 10


@dataclass(frozen=True)
class Kept:
    """What an engine would have copied: keys and values that belong to these tokens, of which each attends to all."""

    tokens: tuple[int, ...]
    nbytes: int = BLOCK_BYTES


class SchedulerMachine(RuleBasedStateMachine):
    """Random requests, cancellations, stops, deadlines, limits and steps; events are checked against a plain model."""

    @initialize(
        slots=st.integers(1, 5),
        spare=st.integers(0, 2),
        min_batch=st.integers(1, 5),
        timeout_s=st.sampled_from([0.0, 0.05, 1.0]),
        budget=st.sampled_from([1, 8, 100]),
        adaptive=st.sampled_from([(False, None), (True, None), (True, 0.05)]),
        prompts=st.sampled_from(PromptCompute),
        cache=st.none() | st.tuples(st.integers(0, 12), st.sampled_from(["lru", "fifo"])),
    )
    def start(
        self,
        slots: int,
        spare: int,
        min_batch: int,
        timeout_s: float,
        budget: int,
        adaptive: tuple[bool, float | None],
        prompts: PromptCompute,
        cache: tuple[int, Literal["lru", "fifo"]] | None,
    ) -> None:
        self.slots = slots + spare
        self.prompts = prompts
        self.limits = BatchLimits(slots, min(min_batch, slots), timeout_s, budget, *adaptive)
        end = frozenset({END})
        self.cache = None
        if cache is not None:
            self.cache = PrefixCache(
                cache[0] * BLOCK_BYTES, block_bytes=BLOCK_BYTES, block_tokens=BLOCK, policy=cache[1]
            )
        self.stored_bytes = 0  # as events tell it
        self.scheduler = Scheduler(self.limits, slots=self.slots, eos_token_ids=end, prompts=prompts, cache=self.cache)
        self.limit = slots  # the running limit, as events tell it
        self.now = 0.0
        self.requests: dict[str, GenerationRequest] = {}
        self.queue: list[str] = []  # waiting, in order of arrival
        self.queued_at: dict[str, float] = {}
        self.running: dict[str, int] = {}  # tokens so far
        self.slot_of: dict[str, int] = {}
        self.computed: dict[str, int] = {}  # prompt tokens in the slot
        self.held: dict[int, str] = {}  # slots that the engine was given and has not been told to release
        self.content: dict[int, list[int]] = {}  # tokens whose keys and values each slot holds
        self.last: dict[int, int] = {}  # the token that each slot produced last
        self.ended: dict[str, str] = {}

    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=12),
        max_tokens=st.integers(1, 6),
        timeout_s=st.sampled_from([None, None, 0.02, 0.5]),
        ignore_eos=st.booleans(),
        priority=st.sampled_from([0, 0, 0, -1, 1]),
        salt=st.sampled_from(["", "", "other"]),
    )
    def add(
        self, prompt: list[int], max_tokens: int, timeout_s: float | None, ignore_eos: bool, priority: int, salt: str
    ) -> None:
        name = str(len(self.requests))
        request = GenerationRequest(
            name,
            prompt,
            max_tokens,
            ignore_eos=ignore_eos,
            timeout_s=timeout_s,
            priority=priority,
            cache_salt=salt,
        )
        self.requests[name] = request
        self.scheduler.add(request, self.now)
        self.take_events()

    @rule(seconds=st.sampled_from([0.001, 0.03, 0.4, 2.0, 2 * AGING_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.requests)
    @rule(pick=st.integers(0, 50))
    def cancel(self, pick: int) -> None:
        self.scheduler.fail(str(pick % len(self.requests)), self.now, status="cancelled", message="gone")
        self.take_events()

    @precondition(lambda self: self.requests)
    @rule(pick=st.integers(0, 50))
    def stop(self, pick: int) -> None:
        self.scheduler.finish(str(pick % len(self.requests)), self.now)
        self.take_events()

    @rule(
        most=st.integers(1, 7),
        min_batch=st.integers(1, 5),
        timeout_s=st.sampled_from([0.0, 0.2]),
        budget=st.sampled_from([1, 5, 100]),
        adaptive=st.booleans(),
    )
    def change_limits(self, most: int, min_batch: int, timeout_s: float, budget: int, adaptive: bool) -> None:
        most = min(most, self.slots)
        self.limits = replace(
            self.limits,
            max_batch_size=most,
            min_batch_size=min(min_batch, most),
            timeout_s=timeout_s,
            max_prefill_tokens=budget,
            adaptive=adaptive,
        )
        self.scheduler.set_limits(self.limits, self.now)
        self.take_events()

    @rule(blocks=st.integers(0, 12), policy=st.sampled_from(["lru", "fifo"]))
    def change_cache(self, blocks: int, policy: Literal["lru", "fifo"]) -> None:
        self.scheduler.set_cache(blocks * BLOCK_BYTES, policy, self.now)
        self.take_events()

    @rule(
        tokens=st.lists(st.integers(0, 3), min_size=1, max_size=5),
        took_s=st.sampled_from([0.0, 0.01, 0.3]),
        cancelled=st.none() | st.integers(0, 50),
    )
    def step(self, tokens: list[int], took_s: float, cancelled: int | None) -> None:
        self.check_plan(plan := self.plan())
        if plan.empty:
            return
        self.now += took_s
        if cancelled is not None:
            self.scheduler.fail(str(cancelled % len(self.requests)), self.now, status="cancelled", message="mid-step")
        self.finish_step(plan, tokens, took_s)

    @rule(dies=st.booleans())
    def end_all(self, dies: bool) -> None:
        if dies:
            self.scheduler.lose_all(self.now, message="dead")
        else:
            self.scheduler.fail_all(self.now, status="cancelled", message="closed")
        self.take_events()
        assert len(self.ended) == len(self.requests)

    def plan(self) -> Plan:
        self.decoding_before = {name for name in self.running if self.complete(name)}
        self.prefilling_before = [name for name in self.running if not self.complete(name)]
        return self.scheduler.plan(self.now)

    def complete(self, name: str) -> bool:
        return self.computed[name] == len(self.requests[name].prompt)

    def finish_step(self, plan: Plan, tokens: list[int], took_s: float) -> None:
        slots = [*plan.decode, *(chunk.slot for chunk in plan.prefill if chunk.final)]
        produced = {slot: tokens[at % len(tokens)] for at, slot in enumerate(slots)}
        for slot in plan.decode:
            self.content[slot].append(self.last[slot])
        for chunk in plan.prefill:
            self.computed[self.held[chunk.slot]] += len(chunk.tokens)
            self.content[chunk.slot] += chunk.tokens
        self.last.update(produced)
        self.scheduler.complete(produced, began=self.now - took_s, now=self.now)
        self.take_events()

    def check_plan(self, plan: Plan) -> None:
        for out in plan.copy_out:
            ends = range(out.store.begin + BLOCK, out.store.begin + (len(out.store.blocks) + 1) * BLOCK, BLOCK)
            content = self.content[out.slot]
            assert len(content) >= ends[-1], "more is to be copied than the slot holds"
            self.scheduler.copied_out(out, [Kept(tuple(content[:end])) for end in ends])
        for slot in plan.release:
            del self.held[slot]
            del self.content[slot]
        copied = {copy.slot: copy.payloads for copy in plan.copy_in}
        for slot, payloads in copied.items():
            assert slot not in self.content, "a prefix was copied into a slot that is in use"
            assert [len(one.tokens) for one in payloads] == [BLOCK * (at + 1) for at in range(len(payloads))]
            self.content[slot] = list(payloads[-1].tokens)
        begun = [chunk.slot for chunk in plan.prefill if chunk.start == 0 or chunk.slot in copied]
        for slot in set(begun) - set(copied):
            self.content[slot] = []
        assert not self.held.keys() & set(begun), "a slot was given away before the engine was told to release it"
        assert len({chunk.slot for chunk in plan.prefill}) == len(plan.prefill)
        self.admitted_slots = iter(begun)
        self.take_events()
        for name, slot in self.slot_of.items():
            if slot in begun and name in self.running:
                self.held[slot] = name

        self.check_prefill(plan)
        still = self.decoding_before & set(self.running)
        assert set(plan.decode) == {self.slot_of[name] for name in still}, "a sequence that decodes was left out"
        room = min(self.slots, self.limit) - len(self.running)
        if self.queue and room > 0 and not plan.prefill:
            held_until = self.queued_at[self.queue[0]] + self.limits.timeout_s
            assert self.now < held_until, "a request was held for longer than the batch timeout"
            assert len(self.queue) < self.limits.min_batch_size, "a full batch was held"
        if plan.empty:
            self.check_wait(plan)

    def check_prefill(self, plan: Plan) -> None:
        for chunk in plan.prefill:
            name = self.held[chunk.slot]
            prompt = self.requests[name].prompt
            assert chunk.start == self.computed[name], "a prompt has a gap"
            assert self.content[chunk.slot] == list(prompt[: chunk.start]), "what was copied is not the prompt's"
            assert list(chunk.tokens) == list(prompt[chunk.start : chunk.start + len(chunk.tokens)])
            assert chunk.final == (chunk.start + len(chunk.tokens) == len(prompt))
            assert chunk.tokens
        lengths = [len(chunk.tokens) for chunk in plan.prefill]
        budget = self.limits.max_prefill_tokens
        if self.prompts is PromptCompute.PIECES:
            assert sum(lengths) <= budget
            for name in self.prefilling_before[:1]:
                if name in self.running:
                    assert self.held[plan.prefill[0].slot] == name, "a prompt under way was overtaken"
        else:
            assert all(chunk.final for chunk in plan.prefill)
            padded = self.prompts is PromptCompute.PADDED
            cost = len(lengths) * max(lengths, default=0) if padded else sum(lengths)
            assert cost <= budget or len(lengths) == 1

    def check_wait(self, plan: Plan) -> None:
        times = [
            self.queued_at[name] + request.timeout_s
            for name, request in self.requests.items()
            if name not in self.ended and request.timeout_s is not None
        ]
        if self.queue:
            times.append(self.queued_at[self.queue[0]] + self.limits.timeout_s)
        assert plan.wait_until == (min(times) if times else None)
        assert plan.wait_until is None or plan.wait_until > self.now

    def turn(self, name: str) -> tuple[float, int]:
        return self.queued_at[name] + self.requests[name].priority * AGING_S, int(name)

    def take_events(self) -> None:
        for event in self.scheduler.take_events():
            if isinstance(event, Queued):
                self.queue.append(event.request_id)
                self.queued_at[event.request_id] = event.at
            elif isinstance(event, Admitted):
                name = event.request_id
                assert name == min(self.queue, key=self.turn), "somebody was overtaken"
                self.queue.remove(name)
                self.running[name] = self.computed[name] = 0
                self.slot_of[name] = next(self.admitted_slots)
                assert len(self.running) <= self.limit <= self.limits.max_batch_size
            elif isinstance(event, CacheLookup):
                assert self.computed[event.request_id] == 0, "looked up twice"
                self.computed[event.request_id] = event.cached_tokens
                assert event.cached_tokens < event.prompt_tokens == len(self.requests[event.request_id].prompt)
            elif isinstance(event, CacheState):
                self.stored_bytes = event.stored_bytes
            elif isinstance(event, LimitMoved):
                assert event.before == self.limit != event.after
                self.limit = event.after
                assert self.limits.min_batch_size <= self.limit <= self.limits.max_batch_size
            elif isinstance(event, Token):
                assert event.index == self.running[event.request_id]
                self.running[event.request_id] += 1
                assert self.running[event.request_id] <= self.requests[event.request_id].max_tokens
            elif isinstance(event, Finished):
                self.end(event.request_id, event.reason)
                assert event.output_tokens == self.running.pop(event.request_id)
            elif isinstance(event, Failed | Lost):
                self.end(event.request_id, event.status if isinstance(event, Failed) else "lost")
                if self.running.pop(event.request_id, None) is None:
                    self.queue.remove(event.request_id)
                if isinstance(event, Failed) and event.status == "timeout":
                    timeout_s = self.requests[event.request_id].timeout_s
                    assert timeout_s is not None
                    assert event.at >= event.queued_at + timeout_s

    def end(self, name: str, how: str) -> None:
        assert name not in self.ended, f"request {name} ended twice"
        self.ended[name] = how

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        assert self.scheduler.waiting == len(self.queue)
        assert self.scheduler.running == len(self.running)
        assert self.scheduler.free_slots + self.scheduler.running == self.slots
        assert self.scheduler.running_limit == self.limit
        if self.cache is not None:
            assert self.cache.counts.stored_bytes <= self.most_stored()

    def most_stored(self) -> int:
        """The budget, and what a budget that was just lowered cannot take back before the next step."""
        assert self.cache is not None
        held = sum(block.pins > 0 for block in self.cache._blocks.values())
        return max(self.cache.budget_bytes, held * 12 * BLOCK_BYTES)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(FAR):
            self.check_plan(plan := self.plan())
            if not plan.empty:
                self.finish_step(plan, [1], 0.0)
            elif plan.wait_until is None:
                break
            else:
                self.now = plan.wait_until
        assert set(self.ended) == set(self.requests), "a request was left behind"
        assert self.scheduler.free_slots == self.slots
        assert not self.held
        if self.cache is not None:
            assert not any(block.pins for block in self.cache._blocks.values()), "something is pinned for ever"
            assert self.cache.counts.stored_bytes <= self.cache.budget_bytes


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSchedulerUnderAnyTraffic = SchedulerMachine.TestCase
