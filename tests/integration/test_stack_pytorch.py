"""The stack over the embedded models on PyTorch: the tokens of Transformers' own `generate`, in any company."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest
import torch

from muai_lab.engines.base import GREEDY, Sampling
from muai_lab.errors import InvalidRequest, RequestCancelled
from muai_lab.models.registry import resolve_model
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.stack.events import Event, Token
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.stack import InferenceStack
from muai_lab.stack.text import StopStrings

OPTIMIZATION = OptimizationSettings.model_validate(
    {"engine_preference": ["pytorch"], "pytorch": {"device": "cpu"}, "batcher": {"max_batch_size": 16}}
)

Reference = Callable[[list[int], int], list[int]]


class TokenRecorder:
    """An observer that keeps the token ids of every request."""

    def __init__(self) -> None:
        self.ids: defaultdict[str, list[int]] = defaultdict(list)

    def observe(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Token):
                self.ids[event.request_id].append(event.token)


RECORDER = TokenRecorder()


@pytest.fixture(scope="module", params=["qwen_chat", "t5_summarizer"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stack(model: str) -> Iterator[InferenceStack]:
    stack = InferenceStack.open(OPTIMIZATION, model, queue_capacity=100, observers=lambda _engine: [RECORDER])
    yield stack
    asyncio.run(stack.close())


@pytest.fixture(scope="module")
def generate(model: str) -> Reference:
    """Greedy tokens by Transformers, one prompt at a time."""
    import transformers

    source = resolve_model(model)
    kind = transformers.AutoModelForSeq2SeqLM if source.encoder_decoder else transformers.AutoModelForCausalLM
    reference = kind.from_pretrained(source.path)

    def generate(prompt: list[int], count: int) -> list[int]:
        output = reference.generate(
            torch.tensor([prompt]),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=3,
        )
        tokens: list[int] = output[0, 1 if source.encoder_decoder else len(prompt) :].tolist()
        return tokens

    return generate


def ragged(count: int, seed: int) -> list[tuple[list[int], int]]:
    """Prompts of 1 to 200 tokens, each with the number of tokens to produce."""
    rng = random.Random(seed)
    lengths = [1, 127, 128, 129, *(rng.randint(2, 200) for _ in range(count - 4))]
    return [([rng.randrange(10, 2000) for _ in range(length)], rng.randint(1, 40)) for length in lengths]


async def ids_of(stack: InferenceStack, name: str, prompt: list[int], count: int, sampling: Sampling) -> list[int]:
    """The token ids of one request."""
    RECORDER.ids.pop(name, None)
    async for _ in stack.submit(GenerationRequest(name, prompt, count, sampling=sampling, ignore_eos=True)):
        pass
    return RECORDER.ids.pop(name)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(100):
            await work()

    asyncio.run(limited())


def test_sixty_four_ragged_requests_at_once_get_the_tokens_of_generate(
    stack: InferenceStack, generate: Reference
) -> None:
    requests = ragged(64, seed=1)

    async def work() -> None:
        got = await asyncio.gather(
            *(ids_of(stack, str(at), prompt, count, GREEDY) for at, (prompt, count) in enumerate(requests))
        )
        for at in range(0, 64, 4):  # every fourth: the reference is slow
            prompt, count = requests[at]
            assert got[at] == generate(prompt, count), f"prompt of {len(prompt)} tokens"
        assert [len(tokens) for tokens in got] == [count for _, count in requests]

    run(work)


def test_greedy_output_is_varied(stack: InferenceStack) -> None:
    async def work() -> None:
        tokens = await ids_of(stack, "varied", list(range(100, 130)), 40, GREEDY)
        assert len(set(tokens)) > 10

    run(work)


def test_a_seed_gives_the_same_tokens_alone_and_in_a_crowd(stack: InferenceStack) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.95, top_k=200, seed=5)
    prompt = list(range(200, 240))

    async def work() -> None:
        alone = await ids_of(stack, "alone", prompt, 25, sampling)
        crowd = [
            ids_of(stack, f"crowd {at}", text, count, Sampling(1.0, seed=at))
            for at, (text, count) in enumerate(ragged(12, seed=2))
        ]
        again, *_ = await asyncio.gather(ids_of(stack, "again", prompt, 25, sampling), *crowd)
        other = await ids_of(stack, "other", prompt, 25, Sampling(0.8, 0.95, 200, seed=6))

        assert again == alone
        assert other != alone

    run(work)


def test_cancelled_sequences_leave_their_slots_and_the_others_alone(stack: InferenceStack, generate: Reference) -> None:
    requests = ragged(8, seed=3)

    async def work() -> None:
        doomed = [stack.submit(GenerationRequest(f"doomed {at}", [5] * 9, 400, ignore_eos=True)) for at in range(16)]
        for generation in doomed[::2]:
            await anext(generation)
        rest = [
            asyncio.create_task(ids_of(stack, str(at), prompt, count, GREEDY))
            for at, (prompt, count) in enumerate(requests)
        ]
        for generation in doomed:
            generation.cancel()
        for generation in doomed:
            with pytest.raises(RequestCancelled):
                async for _ in generation:
                    pass
        for (prompt, count), tokens in zip(requests, await asyncio.gather(*rest), strict=True):
            assert tokens == generate(prompt, count)

    run(work)
    # The last of the cancelled requests are out once the stack is asked for something new.
    run(lambda: _nothing_left(stack))


async def _nothing_left(stack: InferenceStack) -> None:
    async for _ in stack.submit(GenerationRequest("last", [7], 1)):
        pass
    assert (stack.counts().waiting, stack.counts().running) == (0, 0)


def test_text_is_what_the_tokenizer_makes_of_the_tokens(stack: InferenceStack, generate: Reference) -> None:
    prompt = list(range(300, 340))

    async def work() -> None:
        generation = stack.submit(GenerationRequest("text", prompt, 30, ignore_eos=True))
        deltas = [delta async for delta in generation]

        text = "".join(delta.text for delta in deltas)
        assert text == stack.tokenizer.decode(generate(prompt, 30))
        assert deltas[-1].output_tokens == 30

        stop = text[10:14]
        stopped = stack.submit(GenerationRequest("stop", prompt, 30, ignore_eos=True, stop=StopStrings([stop])))
        assert "".join([delta.text async for delta in stopped]) == text[: text.index(stop)]

    run(work)


def test_a_prompt_beyond_the_context_is_refused(stack: InferenceStack) -> None:
    async def work() -> None:
        with pytest.raises(InvalidRequest) as caught:
            stack.submit(GenerationRequest("long", [5] * (stack.info.engine.max_model_len + 1), 1))
        assert caught.value.code == "context_length_exceeded"

    run(work)


def test_plain_inference_without_optimization_is_one_request_at_a_time() -> None:
    plain = OptimizationSettings.model_validate({"enabled": False, "pytorch": {"device": "cpu"}})
    stack = InferenceStack.open(plain, "qwen_chat")

    async def work() -> None:
        generations = [stack.submit(GenerationRequest(str(at), [at + 10], 3, ignore_eos=True)) for at in range(3)]
        assert stack.counts().slots == 1
        for generation in generations:
            assert [delta async for delta in generation][-1].output_tokens == 3
        await stack.close()

    run(work)
