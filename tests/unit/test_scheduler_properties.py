"""What holds for the scheduler under any traffic, in virtual time."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from muai_lab.stack.events import Admitted, Failed, Finished, Lost, Queued, Token
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.scheduler import BatchLimits, Plan, Scheduler

END = 0
FAR = 10_000  # steps within which any of these workloads must be through


class SchedulerMachine(RuleBasedStateMachine):
    """Random requests, cancellations, stops, deadlines and steps; the events are checked against a plain model."""

    @initialize(
        slots=st.integers(1, 5),
        spare=st.integers(0, 2),
        min_batch=st.integers(1, 5),
        timeout_s=st.sampled_from([0.0, 0.05, 1.0]),
        budget=st.sampled_from([1, 8, 100]),
    )
    def start(self, slots: int, spare: int, min_batch: int, timeout_s: float, budget: int) -> None:
        self.slots = slots + spare
        self.limits = BatchLimits(slots, min(min_batch, slots), timeout_s, budget)
        self.scheduler = Scheduler(self.limits, slots=self.slots, eos_token_ids=frozenset({END}))
        self.now = 0.0
        self.requests: dict[str, GenerationRequest] = {}
        self.queue: list[str] = []  # waiting, in order of arrival
        self.queued_at: dict[str, float] = {}
        self.running: dict[str, int] = {}  # tokens so far
        self.slot_of: dict[str, int] = {}
        self.held: set[int] = set()  # slots that the engine was given and has not been told to release
        self.ended: dict[str, str] = {}

    @rule(
        prompt=st.integers(1, 12),
        max_tokens=st.integers(1, 6),
        timeout_s=st.sampled_from([None, None, 0.02, 0.5]),
        ignore_eos=st.booleans(),
    )
    def add(self, prompt: int, max_tokens: int, timeout_s: float | None, ignore_eos: bool) -> None:
        name = str(len(self.requests))
        request = GenerationRequest(name, [1] * prompt, max_tokens, ignore_eos=ignore_eos, timeout_s=timeout_s)
        self.requests[name] = request
        self.scheduler.add(request, self.now)
        self.take_events()

    @rule(seconds=st.sampled_from([0.001, 0.03, 0.4, 2.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(pick=st.integers(0, 50))
    def cancel(self, pick: int) -> None:
        if self.requests:
            self.scheduler.fail(str(pick % len(self.requests)), self.now, status="cancelled", message="gone")
            self.take_events()

    @rule(pick=st.integers(0, 50))
    def stop(self, pick: int) -> None:
        if self.requests:
            self.scheduler.finish(str(pick % len(self.requests)), self.now)
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
        slots = [*plan.decode, *(chunk.slot for chunk in plan.prefill)]
        produced = {slot: tokens[at % len(tokens)] for at, slot in enumerate(slots)}
        self.scheduler.complete(produced, began=self.now - took_s, now=self.now)
        self.take_events()

    @rule(dies=st.booleans())
    def end_all(self, dies: bool) -> None:
        if dies:
            self.scheduler.lose_all(self.now, message="dead")
        else:
            self.scheduler.fail_all(self.now, status="cancelled", message="closed")
        self.take_events()
        assert len(self.ended) == len(self.requests)

    def plan(self) -> Plan:
        self.decoding_before = set(self.running)
        return self.scheduler.plan(self.now)

    def check_plan(self, plan: Plan) -> None:
        assert set(plan.release) <= self.held
        self.held -= set(plan.release)
        given = [chunk.slot for chunk in plan.prefill]
        assert not self.held & set(given), "a slot was given away before the engine was told to release it"
        assert len(set(given)) == len(given)
        self.held |= set(given)
        assert sum(len(chunk.tokens) for chunk in plan.prefill) <= self.limits.max_prefill_tokens or len(given) == 1
        self.admitted_slots = iter(given)
        self.take_events()

        still = self.decoding_before & set(self.running)
        assert set(plan.decode) == {self.slot_of[name] for name in still}, "a running sequence was left out"
        if plan.prefill:
            assert len(self.running) <= self.limits.max_batch_size
        room = min(self.slots, self.limits.max_batch_size) - len(self.running)
        if self.queue and room > 0 and not plan.prefill:
            held_until = self.queued_at[self.queue[0]] + self.limits.timeout_s
            assert self.now < held_until, "a request was held for longer than the batch timeout"
            assert len(self.queue) < self.limits.min_batch_size, "a full batch was held"
        if plan.empty:
            self.check_wait(plan)

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

    def take_events(self) -> None:
        for event in self.scheduler.take_events():
            if isinstance(event, Queued):
                self.queue.append(event.request_id)
                self.queued_at[event.request_id] = event.at
            elif isinstance(event, Admitted):
                assert event.request_id == self.queue.pop(0), "admission is not first-in, first-out"
                self.running[event.request_id] = 0
                self.slot_of[event.request_id] = next(self.admitted_slots)
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

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(FAR):
            self.check_plan(plan := self.plan())
            if not plan.empty:
                slots = [*plan.decode, *(chunk.slot for chunk in plan.prefill)]
                self.scheduler.complete(dict.fromkeys(slots, 1), began=self.now, now=self.now)
                self.take_events()
            elif plan.wait_until is None:
                break
            else:
                self.now = plan.wait_until
        assert set(self.ended) == set(self.requests), "a request was left behind"
        assert self.scheduler.free_slots == self.slots
        assert not self.held


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSchedulerUnderAnyTraffic = SchedulerMachine.TestCase
