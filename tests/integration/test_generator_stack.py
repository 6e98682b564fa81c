"""From settings to records over the embedded model, without sockets."""

from __future__ import annotations

import asyncio

from muai_lab.load.generator import LoadResult, generate
from muai_lab.load.inprocess import InProcessTarget
from muai_lab.load.plan import LoadPlan
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.section import with_value
from muai_lab.stack.stack import InferenceStack
from muai_lab.workload.draw import draw_schedule
from muai_lab.workload.schedule import Schedule

SETTINGS = LabSettings.model_validate(
    {
        "arrival": {"kind": "closed", "concurrency": 4},
        "load": {"warmup_s": 0.0, "duration_s": 60.0, "requests": 24},
        "workload": {
            "prompt_tokens": {"distribution": "uniform", "low": 4, "high": 40},
            "output_tokens": {"distribution": "uniform", "low": 2, "high": 12},
        },
        "optimization": {"engine_preference": ["pytorch"]},
    }
)


async def load_the_stack(settings: LabSettings) -> tuple[Schedule, LoadResult]:
    stack = await asyncio.to_thread(InferenceStack.open, settings.optimization, settings.model.name)
    try:
        schedule = draw_schedule(settings, stack.tokenizer)
        target = InProcessTarget.of(settings, stack)
        return schedule, await generate(schedule, target, LoadPlan.of(settings))
    finally:
        await stack.close()


def test_the_stack_answers_the_schedule_token_for_token() -> None:
    schedule, result = asyncio.run(load_the_stack(SETTINGS))

    assert [record.error for record in result.records] == [None] * 24
    wanted = {request.index: (request.prompt_tokens, request.max_tokens) for request in schedule}
    for record in result.records:
        assert (record.prompt_tokens, record.output_tokens) == wanted[record.index]
        assert record.finish_reason == "length"
        assert sum(record.chunk_tokens) <= record.output_tokens


def test_prompts_have_exactly_the_wanted_tokens_for_the_models_tokenizer() -> None:
    chat = with_value(with_value(SETTINGS, "workload.api", "chat"), "workload.prompt_tokens.low", 24)

    async def main() -> None:
        stack = await asyncio.to_thread(InferenceStack.open, SETTINGS.optimization, SETTINGS.model.name)
        try:
            for request in draw_schedule(SETTINGS, stack.tokenizer):
                assert len(stack.tokenizer.encode(request.prompt)) == request.prompt_tokens
            for request in draw_schedule(chat, stack.tokenizer):
                message = {"role": "user", "content": request.prompt}
                assert len(stack.tokenizer.encode_chat([message])) == request.prompt_tokens >= 24
        finally:
            await stack.close()

    asyncio.run(main())
