"""The prefix cache in the stack: when there is one, how it is changed while serving, and what it tells. On an engine
that counts, and whose slots can be copied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import pytest

from muai_lab.engines.base import KVBlock, PrefixEngine
from muai_lab.errors import EngineError, SettingsError
from muai_lab.settings.schema import BatcherSettings, CacheSettings, OptimizationSettings
from muai_lab.stack.events import CacheLookup, CacheState
from muai_lab.stack.prefix_cache import BLOCK_TOKENS
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.stack import InferenceStack
from tests.unit.counting_engine import DEADLINE_S, CountingEngine
from tests.unit.stack_on_counting import Recorder, stack_on, until

pytestmark = pytest.mark.anyio

MIB = 2**20


@dataclass(frozen=True)
class Copied:
    positions: int
    nbytes: int


class CopyingEngine(CountingEngine, PrefixEngine):
    """Its slots can be copied; a position takes `position` bytes."""

    def __init__(self, *, position: int = MIB // BLOCK_TOKENS, refusal: str | None = None) -> None:
        super().__init__(context=256)
        self.position = position
        self.refusal = refusal

    def prefix_refusal(self) -> str | None:
        return self.refusal

    def position_bytes(self) -> int:
        return self.position

    def copy_out(self, slot: int, begin: int, end: int, block: int) -> Sequence[KVBlock]:
        assert 0 <= begin < end
        assert (end - begin) % block == 0
        assert slot in self._computed
        return [Copied(block, block * self.position) for _ in range(begin, end, block)]

    def copy_in(self, slot: int, blocks: Sequence[KVBlock]) -> None:
        assert slot not in self._computed, "the slot is in use"
        self._computed[slot] = sum(block.positions for block in blocks)  # type: ignore[attr-defined]


MakeStack = Callable[..., tuple[InferenceStack, Recorder]]


@pytest.fixture
async def make() -> AsyncIterator[MakeStack]:
    """Makes stacks that are closed after the test."""
    stacks = []

    def make(engine: CountingEngine, enabled: bool = True, **cache: object) -> tuple[InferenceStack, Recorder]:
        recorder = Recorder()
        batching, caching = BatcherSettings(max_batch_size=4), CacheSettings(**cache)  # type: ignore[arg-type]
        settings = OptimizationSettings(enabled=enabled, batcher=batching, cache=caching)
        stacks.append(stack_on(engine, settings, observers=[recorder]))
        return stacks[-1], recorder

    yield make
    for stack in stacks:
        await stack.close()


names = iter(range(1_000))


async def ask(stack: InferenceStack, prompt: Sequence[int], max_tokens: int = 3, salt: str = "") -> int | None:
    """How many of the prompt's tokens the cache served."""
    name = f"r{next(names)}"
    async with asyncio.timeout(DEADLINE_S):
        deltas = [delta async for delta in stack.submit(GenerationRequest(name, prompt, max_tokens, cache_salt=salt))]
    return deltas[-1].cached_tokens


PROMPT = [number % 90 for number in range(50)]


async def test_a_prompt_is_found_again_but_for_its_last_tokens(make: MakeStack) -> None:
    stack, recorder = make(CopyingEngine())

    assert await ask(stack, PROMPT) == 0
    assert await ask(stack, PROMPT) == 48
    assert await ask(stack, PROMPT[:48]) == 32  # one token at least is left to compute
    assert await ask(stack, PROMPT, salt="other") == 0

    lookups = [(event.prompt_tokens, event.cached_tokens) for event in recorder.of(CacheLookup)]
    assert lookups == [(50, 0), (50, 48), (48, 32), (50, 0)]


async def test_an_output_is_found_by_the_next_turn(make: MakeStack) -> None:
    stack, _ = make(CopyingEngine())
    output = [(PROMPT[-1] + number) % 100 for number in range(1, 21)]

    await ask(stack, PROMPT, max_tokens=20)

    assert await ask(stack, [*PROMPT, *output, 7]) == 64


async def test_the_budget_holds_and_evictions_are_told(make: MakeStack) -> None:
    stack, recorder = make(CopyingEngine(), max_memory_mb=4)

    for start in range(4):
        await ask(stack, [start, *PROMPT[:35]])

    states = recorder.of(CacheState)
    assert {state.budget_bytes for state in states} == {4 * MIB}
    assert max(state.stored_bytes for state in states) == 4 * MIB
    assert sum(state.evicted_blocks for state in states) == 4
    assert states[-1].blocks == 4


async def test_it_is_resized_and_turned_off_and_on_while_serving(make: MakeStack) -> None:
    stack, recorder = make(CopyingEngine(), max_memory_mb=4)
    await ask(stack, PROMPT)

    await stack.reconfigure({"cache": {"max_memory_mb": 1}})
    await until(lambda: recorder.of(CacheState)[-1].stored_bytes == MIB)
    assert await ask(stack, PROMPT) == 16

    await stack.reconfigure({"cache": {"enabled": False}})
    await until(lambda: recorder.of(CacheState)[-1].stored_bytes == 0)
    assert await ask(stack, PROMPT) is None

    await stack.reconfigure({"cache": {"enabled": True, "max_memory_mb": 4, "eviction_policy": "fifo"}})
    assert await ask(stack, PROMPT) == 0
    assert await ask(stack, PROMPT) == 48


async def test_less_than_one_block_is_refused_and_nothing_changes(make: MakeStack) -> None:
    stack, _ = make(CopyingEngine(position=3 * MIB), max_memory_mb=100)
    await ask(stack, PROMPT)

    with pytest.raises(SettingsError, match=r"max_memory_mb = 40 is less than one block .* raise it to at least 48"):
        await stack.reconfigure({"cache": {"max_memory_mb": 40}, "batcher": {"max_batch_size": 2}})

    assert stack.optimization.batcher.max_batch_size == 4
    assert await ask(stack, PROMPT) == 32


async def test_less_than_one_block_is_no_start(make: MakeStack) -> None:
    engine = CopyingEngine(position=3 * MIB)

    with pytest.raises(EngineError, match=r"16 tokens, 48\.0 MB with this model\): raise it to at least 48, or turn"):
        make(engine, max_memory_mb=40)

    assert engine.closed == 1


@pytest.mark.parametrize("off", [{"enabled": False}, {"max_memory_mb": 0}])
async def test_where_it_is_switched_off_nothing_is_looked_up(make: MakeStack, off: dict[str, object]) -> None:
    engine = CopyingEngine()
    stack, recorder = make(engine, enabled=off.get("enabled", True), **{k: v for k, v in off.items() if k != "enabled"})

    assert [await ask(stack, PROMPT), await ask(stack, PROMPT)] == [None, None]
    assert not recorder.of(CacheLookup)


async def test_an_engine_that_cannot_copy_serves_without_and_refuses_changes(make: MakeStack) -> None:
    stack, recorder = make(CopyingEngine(refusal="an encoder reads its prompt whole"))

    assert [await ask(stack, PROMPT), await ask(stack, PROMPT)] == [None, None]
    assert not recorder.of(CacheLookup)
    with pytest.raises(SettingsError, match="cache cannot be changed while engine counting serves"):
        await stack.reconfigure({"cache": {"max_memory_mb": 40}})
