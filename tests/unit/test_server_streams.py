"""What happens to streams that do not end well: clients that leave, engines that fail, drains that run out of time."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.server_fakes import Bench, Call, ParrotEngine, in_bench

COMPLETIONS = "/v1/completions"


class StepwiseParrot(ParrotEngine):
    """Computes `free` steps, then waits for the gate."""

    def __init__(self, free: int) -> None:
        super().__init__()
        self.free = free
        self.gate.clear()

    def decode(self, slots):  # type: ignore[no-untyped-def]
        if self.free > 0:
            self.free -= 1
            return self.speak(slots)
        return super().decode(slots)


def first_token(call: Call) -> asyncio.Task[None]:
    return asyncio.create_task(call.until(lambda answer: len(answer.chunks) > 0))


@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_hangs_up_frees_its_slots_at_once(n: int) -> None:
    async def work(bench: Bench) -> None:
        call, request = bench.start(COMPLETIONS, prompt="abc", max_tokens=50, stream=True, n=n)
        await first_token(call)

        call.hang_up()
        answer = await request
        bench.engine.gate.set()
        await bench.load(running=0)

        assert not answer.complete

    in_bench(work, engine=StepwiseParrot(2))


def test_a_client_that_hangs_up_on_a_whole_answer_frees_its_slot_too() -> None:
    async def work(bench: Bench) -> None:
        bench.engine.gate.clear()
        call, request = bench.start(COMPLETIONS, prompt="abc", max_tokens=50)
        await bench.load(running=1)

        call.hang_up()
        answer = await request
        bench.engine.gate.set()
        await bench.load(running=0)

        assert answer.status == 0

    in_bench(work)


def test_other_streams_go_on_when_one_client_leaves() -> None:
    async def work(bench: Bench) -> None:
        leaving, left = bench.start(COMPLETIONS, prompt="abc", max_tokens=50, stream=True)
        _, staying = bench.start(COMPLETIONS, prompt="xyz", max_tokens=5, stream=True)
        await first_token(leaving)

        leaving.hang_up()
        await left
        bench.engine.gate.set()

        assert "".join(event["choices"][0]["text"] for event in (await staying).events[:-1]) == "XYZXY"

    in_bench(work, engine=StepwiseParrot(2))


def test_a_failure_before_the_first_token_has_its_true_status() -> None:
    async def work(bench: Bench) -> None:
        bench.engine.broken = True
        answer = await bench.complete(prompt="abc", stream=True)

        assert (answer.status, answer.error["code"]) == (500, "engine_error")

    in_bench(work)


@pytest.mark.parametrize("n", [1, 2])
def test_a_failure_in_the_middle_is_an_error_event_and_the_end(n: int) -> None:
    async def work(bench: Bench) -> None:
        call, request = bench.start(COMPLETIONS, prompt="abc", max_tokens=50, stream=True, n=n)
        await first_token(call)

        bench.engine.broken = True
        bench.engine.gate.set()
        answer = await request

        *events, last = answer.events
        assert answer.status == 200
        assert answer.complete
        assert events
        assert last["error"]["code"] == "engine_error"
        assert set(last["error"]) == {"message", "type", "param", "code"}

    in_bench(work, engine=StepwiseParrot(2))


def test_a_stream_that_a_drain_cuts_off_is_told_so() -> None:
    async def work(bench: Bench) -> None:
        call, request = bench.start(COMPLETIONS, prompt="abc", max_tokens=50, stream=True)
        await first_token(call)

        await bench.host.drain(0.0)
        last = (await request).events[-1]

        assert "shutting down" in last["error"]["message"]

    in_bench(work, engine=StepwiseParrot(2))


def test_a_drain_lets_a_running_stream_finish() -> None:
    async def work(bench: Bench) -> None:
        call, request = bench.start(COMPLETIONS, prompt="abc", max_tokens=6, stream=True)
        await first_token(call)

        drain = asyncio.create_task(bench.host.drain(10.0))
        bench.engine.gate.set()
        await drain

        assert (await request).events[-1] == "[DONE]"

    in_bench(work, engine=StepwiseParrot(2))
