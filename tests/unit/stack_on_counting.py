"""A stack on an engine that counts, for tests of what stands between the two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from muai_lab.engines.selection import Candidate, EngineCandidates
from muai_lab.models.registry import ModelSource
from muai_lab.settings.schema import BatcherSettings, OptimizationSettings
from muai_lab.stack.events import Event
from muai_lab.stack.generation import Generation
from muai_lab.stack.request import Delta, GenerationRequest
from muai_lab.stack.stack import InferenceStack
from tests.unit.counting_engine import DEADLINE_S, CountingEngine

E = TypeVar("E", bound=Event)
MakeStack = Callable[..., InferenceStack]

FOREVER = 10_000  # steps, or tokens


class NumberTokenizer:
    """Token 12 is the text "12 "; one may be broken. The tokenizer knows more ids than the engine has."""

    vocab_size = 500
    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, broken: int | None = None) -> None:
        self._broken = broken

    def stream(self) -> NumberTokenizer:
        return self

    def push(self, token_id: int) -> str:
        if token_id == self._broken:
            raise ValueError("no such text")
        return f"{token_id} "

    def flush(self) -> str:
        return ""


class Recorder:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, events: Sequence[Event]) -> None:
        self.events.extend(events)

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the engine's thread has brought this about."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0)


def stack_on(
    engine: CountingEngine,
    optimization: OptimizationSettings,
    *,
    queue_capacity: int | None = None,
    observers: Sequence[Any] = (),
    broken_token: int | None = None,
) -> InferenceStack:
    """A stack that serves the engine."""
    return InferenceStack(
        "counting",
        ModelSource("counting", None, None, "embedded", "0" * 64, False, "counting"),
        NumberTokenizer(broken_token),  # type: ignore[arg-type]
        EngineCandidates([Candidate("counting", lambda: None, lambda: engine)], model="counting"),
        optimization,
        queue_capacity=queue_capacity,
        observers=lambda _info: observers,
    )


def open_stack(
    engine: CountingEngine, *, step_timeout_s: float | None = None, batcher: dict[str, Any] | None = None, **more: Any
) -> InferenceStack:
    """The same with these settings; more: see `stack_on`."""
    batching = BatcherSettings(**{"max_batch_size": engine.slots, **(batcher or {})})
    return stack_on(engine, OptimizationSettings(step_timeout_s=step_timeout_s, batcher=batching), **more)


@asynccontextmanager
async def closed_afterwards() -> AsyncIterator[MakeStack]:
    """Makes stacks (see `open_stack`) that are closed at the end."""
    stacks = []

    def make(engine: CountingEngine, **more: Any) -> InferenceStack:
        stacks.append((open_stack(engine, **more), engine))
        return stacks[-1][0]

    yield make
    for stack, engine in stacks:
        engine.allow.release(FOREVER)
        await stack.close()


def ask(name: str = "a", last: int = 10, max_tokens: int = 3, **more: Any) -> GenerationRequest:
    """A request whose output goes on counting from the last token of its prompt."""
    return GenerationRequest(name, [1, 2, last], max_tokens, **more)


async def deltas_of(generation: Generation) -> list[Delta]:
    """All of its output. Raises what ends it."""
    async with asyncio.timeout(DEADLINE_S):
        return [delta async for delta in generation]


async def text_of(generation: Generation) -> str:
    """All of its text. Raises what ends it."""
    return "".join(delta.text for delta in await deltas_of(generation))
