"""Failover with the real engines: one that fails to load, and one that raises inside a step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from muai_lab.engines.pytorch.decoder import DecoderModel
from muai_lab.settings.resolve import load_settings
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.stack import InferenceStack


def open_stack(*preference: str, **more: Any) -> InferenceStack:
    overrides = {"optimization.engine_preference": list(preference), **more}
    return InferenceStack.open(load_settings(environ={}, overrides=overrides).settings.optimization, "qwen_chat")


async def texts_of(stack: InferenceStack, prompts: list[list[int]]) -> list[str]:
    async def one(index: int) -> str:
        request = GenerationRequest(f"r{index}", prompts[index], 24, ignore_eos=True, stream=False)
        return "".join([delta.text async for delta in stack.submit(request)])

    return await asyncio.gather(*(one(index) for index in range(len(prompts))))


@pytest.fixture
def failing_after() -> Callable[[int, pytest.MonkeyPatch], None]:
    def fail(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        whole, left = DecoderModel.decode, iter(range(steps))

        def decode(self: DecoderModel, *arguments: Any) -> Any:
            if next(left, None) is None:
                raise RuntimeError("out of memory, say")
            return whole(self, *arguments)

        monkeypatch.setattr(DecoderModel, "decode", decode)

    return fail


def test_what_a_step_that_raises_leaves_behind_is_run_again_with_the_same_answers(
    failing_after: Callable[[int, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        well = await asyncio.to_thread(open_stack, "pytorch")
        random = np.random.default_rng(0)
        prompts = [well.tokenizer.prompt_of(length, random)[1] for length in (5, 20, 40, 80, 11, 60)]
        expected = await texts_of(well, prompts)
        await well.close()
        stack = await asyncio.to_thread(open_stack, "pytorch", "onnx")
        failing_after(7, monkeypatch)

        answers = await texts_of(stack, prompts)

        assert answers == expected
        assert stack.info.engine.name == "onnx"
        assert "out of memory, say" in stack.info.skipped[0][1]
        await stack.close()

    asyncio.run(scenario())


def test_an_engine_that_fails_while_it_loads_is_passed_over_with_its_reason() -> None:
    async def scenario() -> None:
        stack = await asyncio.to_thread(
            open_stack, "vllm", "pytorch", **{"optimization.vllm.max_model_len": 10_000_000}
        )

        assert stack.info.engine.name == "pytorch"
        (name, reason), *_ = stack.info.skipped
        assert name == "vllm"
        assert "10000000" in reason or "max_model_len" in reason
        assert await texts_of(stack, [[300, 301, 302]])
        await stack.close()

    asyncio.run(scenario())
