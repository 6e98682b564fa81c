"""An engine that schedules itself and dies: the next one tests its requests one by one before they run together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from muai_lab.engines.base import EngineInfo, Sampling, StreamedTokens, StreamingEngine
from muai_lab.engines.selection import Candidate, EngineCandidates
from muai_lab.errors import EngineError, InvalidRequest, RequestError
from muai_lab.models.registry import ModelSource
from muai_lab.settings.schema import BatcherSettings, OptimizationSettings
from muai_lab.stack.stack import InferenceStack
from tests.unit.stack_on_counting import NumberTokenizer, ask, text_of

pytestmark = pytest.mark.anyio

POISON, WRONG = 66, 77


class Mortal(StreamingEngine):
    """Counts on from the last token of a prompt; dies of `POISON`, and refuses `WRONG` as vLLM would."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.slots = 8
        self.dead = False
        self.most_at_once = 0
        self.open = 0

    async def start(self) -> None:
        self.info = EngineInfo(self.name, "1", "cpu", "fp32", 64)

    async def generate(
        self,
        request_id: str,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        ignore_eos: bool,
        cache_salt: str = "",
    ) -> AsyncIterator[StreamedTokens]:
        self.open += 1
        self.most_at_once = max(self.most_at_once, self.open)
        try:
            for index in range(max_tokens):
                await asyncio.sleep(0)
                if prompt[-1] == WRONG:
                    raise InvalidRequest("not such a number", param="top_k")
                self.dead = self.dead or prompt[-1] == POISON
                if self.dead:
                    raise EngineError(self.name, "its process was killed")
                ended = "length" if index == max_tokens - 1 else None
                yield StreamedTokens([prompt[-1] + 1 + index], finish_reason=ended)
        finally:
            self.open -= 1

    async def check(self) -> None:
        if self.dead:
            raise EngineError(self.name, "its process was killed")

    async def close(self) -> None:
        self.dead = True


def stack_of(*engines: Mortal) -> InferenceStack:
    candidates = [Candidate(engine.name, lambda: None, lambda engine=engine: engine) for engine in engines]
    return InferenceStack(
        "counting",
        ModelSource("counting", None, None, "embedded", "0" * 64, False, "counting"),
        NumberTokenizer(),  # type: ignore[arg-type]
        EngineCandidates(candidates, model="counting"),
        OptimizationSettings(batcher=BatcherSettings(max_batch_size=8)),
    )


@pytest.mark.parametrize("place", [0, 2, 5])
async def test_a_request_of_which_two_engines_die_ends_and_the_others_are_served_by_the_third(place: int) -> None:
    engines = [Mortal("first"), Mortal("second"), Mortal("third")]
    stack = stack_of(*engines)
    lasts = [10 * number for number in range(6)]
    lasts[place] = POISON

    asked = [stack.submit(ask(str(number), last, max_tokens=4, stream=False)) for number, last in enumerate(lasts)]
    texts = await asyncio.gather(*(text_of(generation) for generation in asked), return_exceptions=True)

    assert isinstance(texts[place], RequestError)
    assert "second engine that failed under it" in str(texts[place])
    for number, text in enumerate(texts):
        assert number == place or text == "".join(f"{lasts[number] + 1 + index} " for index in range(4))
    assert stack.info.engine.name == "third"
    assert stack.healthy()
    await stack.close()


async def test_what_an_engine_refuses_is_the_clients_error() -> None:
    stack = stack_of(Mortal("only"))

    with pytest.raises(InvalidRequest, match="not such a number"):
        await text_of(stack.submit(ask("a", WRONG)))

    assert await text_of(stack.submit(ask("b"))) == "11 12 13 "
    assert stack.healthy()
    await stack.close()
