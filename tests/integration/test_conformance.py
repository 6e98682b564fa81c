"""One contract, every engine: the same tests over all of them, for each of the two models that they serve.

All engines run in fp32, behind the whole stack (scheduler, driver, detokenisation), as the server runs them: on the
CPU, or with `MUAI_TEST_DEVICE=cuda` on a GPU. The reference is always Transformers on the CPU.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from muai_lab.engines.base import Sampling
from muai_lab.errors import InvalidRequest, RequestCancelled
from muai_lab.stack.text import StopStrings
from tests.integration.served_engines import SLOTS, Reference, Served, missing_gpu, prompts

LONG = 150  # tokens: more than one block of any prefix cache, vLLM's on a CPU has blocks of 128
TIE = 1e-3  # logits that are closer than this may change places between engines
DEVICE = os.environ["MUAI_TEST_DEVICE"]  # conftest.py sees to it
SERVED = [
    ("pytorch", "qwen_chat"),
    ("pytorch", "t5_summarizer"),
    ("onnx", "qwen_chat"),
    ("onnx", "t5_summarizer"),
    ("deepspeed", "qwen_chat"),
    ("deepspeed", "t5_summarizer"),
    ("vllm", "qwen_chat"),
]


@pytest.fixture(scope="module", autouse=True)
def _shared_cache(session_cache: Path) -> None:
    """Graphs that another module of this session exported are not exported again."""


@pytest.fixture(scope="module", params=SERVED, ids=["-".join((*pair, DEVICE)) for pair in SERVED])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    engine, model = request.param
    if DEVICE == "cuda" and (missing := missing_gpu(engine)) is not None:
        pytest.skip(f"needs a GPU for {engine}: {missing}")
    before = set(psutil.Process().children(recursive=True))
    threads_before = {thread.ident for thread in threading.enumerate()}
    served = Served(engine, model, DEVICE)
    yield served
    served.close()

    left = set(psutil.Process().children(recursive=True)) - before
    # Python's own tracker of shared memory, once started, lives as long as the process that started it.
    left = {process for process in left if "multiprocessing.resource_tracker" not in " ".join(_command(process))}
    assert not psutil.wait_procs(left, timeout=200)[1], "processes are left behind"
    threads = [thread for thread in threading.enumerate() if thread.ident not in threads_before]
    assert not [thread.name for thread in threads if "engine" in thread.name], "the engine's thread is left behind"


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    return {name: Reference(name) for name in ("qwen_chat", "t5_summarizer")}


@pytest.fixture
def reference(served: Served, references: dict[str, Reference]) -> Reference:
    return references[served.model]


def test_the_engine_that_was_asked_for_serves(served: Served) -> None:
    assert served.stack.info.engine.name == served.engine
    assert served.stack.info.engine.dtype == "fp32"
    assert (served.stack.info.engine.device == "cpu") == (served.device == "cpu")
    assert served.stack.healthy()


def test_greedy_tokens_are_those_of_transformers(served: Served, reference: Reference) -> None:
    asked = prompts(served, [1, 7, 16, 33, 100, 250])

    async def all_at_once() -> list[list[int]]:
        return await asyncio.gather(*(served.tokens(prompt, 32) for prompt in asked))

    for prompt, tokens in zip(asked, served.run(all_at_once()), strict=True):
        expected = reference.greedy(prompt, 32)
        if tokens != expected:
            at = next(index for index, pair in enumerate(zip(tokens, expected, strict=True)) if pair[0] != pair[1])
            logits = reference.logits(prompt, expected[:at])
            assert logits[expected[at]] - logits[tokens[at]] < TIE, f"differs at token {at} without a tie"


def test_company_in_the_batch_changes_nothing(served: Served) -> None:
    first, *others = prompts(served, [40, 5, 90, 17], seed=1)

    async def alone_then_together() -> tuple[list[int], list[int]]:
        alone = await served.tokens(first, 24)
        together, *_ = await asyncio.gather(served.tokens(first, 24), *(served.tokens(prompt, 9) for prompt in others))
        return alone, together

    alone, together = served.run(alone_then_together())
    assert alone == together


def test_a_stop_string_ends_the_output_before_itself(served: Served) -> None:
    (prompt,) = prompts(served, [20], seed=2)
    whole = served.run(served.text(prompt, 40))
    stop = whole[len(whole) // 2 : len(whole) // 2 + 5]

    stopped = served.run(served.text(prompt, 40, stop=StopStrings([stop])))

    assert stopped == whole[: whole.index(stop)]


def test_a_seed_gives_the_same_tokens_alone_and_in_company(served: Served) -> None:
    asked = prompts(served, [12, 30, 61], seed=3)
    warm = [Sampling(temperature=1.0, seed=seed) for seed in (7, 8)]

    async def draw() -> tuple[list[int], list[int], list[int]]:
        alone = await served.tokens(asked[0], 16, sampling=warm[0])
        again, *_ = await asyncio.gather(
            served.tokens(asked[0], 16, sampling=warm[0]),
            *(served.tokens(prompt, 16, sampling=Sampling(temperature=0.7)) for prompt in asked[1:]),
        )
        return alone, again, await served.tokens(asked[0], 16, sampling=warm[1])

    alone, again, other = served.run(draw())
    assert alone == again
    assert alone != other


def test_samples_follow_the_models_distribution(served: Served, reference: Reference) -> None:
    (prompt,) = prompts(served, [25], seed=4)
    draws = 600

    async def draw() -> list[list[int]]:
        return await asyncio.gather(
            *(served.tokens(prompt, 1, sampling=Sampling(temperature=0.8, seed=seed)) for seed in range(draws))
        )

    seen = np.bincount([tokens[0] for tokens in served.run(draw())], minlength=reference.logits(prompt, []).shape[0])
    wanted = (reference.logits(prompt, []).double() / 0.8).softmax(-1).numpy()
    # Pearson's chi-square over the likeliest tokens and one bin for the rest; its mean is the degrees of freedom k, its
    # variance 2k. Five standard deviations: the seeds are fixed, so this either holds for ever or never.
    bins = np.argsort(wanted)[::-1][:12]
    observed = np.append(seen[bins], draws - seen[bins].sum())
    expected = np.append(wanted[bins], 1 - wanted[bins].sum()) * draws
    kept = expected > 5
    chi_square = ((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    freedom = kept.sum() - 1
    assert freedom >= 2
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_top_k_of_one_and_a_tiny_nucleus_are_greedy(served: Served) -> None:
    (prompt,) = prompts(served, [18], seed=5)

    async def three_ways() -> list[list[int]]:
        return [
            await served.tokens(prompt, 12),
            await served.tokens(prompt, 12, sampling=Sampling(temperature=1.0, top_k=1, seed=1)),
            await served.tokens(prompt, 12, sampling=Sampling(temperature=1.0, top_p=1e-6, seed=1)),
        ]

    greedy, top_1, nucleus = served.run(three_ways())
    assert greedy == top_1 == nucleus


def test_more_ragged_requests_than_slots_all_end_with_what_they_asked_for(served: Served) -> None:
    random = np.random.default_rng(6)
    asked = prompts(served, random.integers(4, 200, size=64), seed=6)
    wanted = random.integers(1, 40, size=64).tolist()

    async def all_at_once() -> list[list[int]]:
        return await asyncio.gather(
            *(served.tokens(prompt, count) for prompt, count in zip(asked, wanted, strict=True))
        )

    assert [len(tokens) for tokens in served.run(all_at_once())] == wanted
    counts = served.stack.counts()
    assert (counts.waiting, counts.running) == (0, 0)


def test_a_cancelled_request_makes_room_at_once(served: Served) -> None:
    asked = prompts(served, [10] * (SLOTS + 1), seed=7)

    async def cancel_one() -> None:
        running = [served.submit(prompt, 400) for prompt in asked[:SLOTS]]
        for generation in running:
            await anext(generation)
        waiting = served.submit(asked[-1], 3)
        running[0].cancel()

        assert sum([delta.tokens async for delta in waiting]) == 3
        with pytest.raises(RequestCancelled):
            await anext(running[0])
        assert not running[1].ended
        for generation in running[1:]:
            generation.cancel()

    served.run(cancel_one())


def test_end_of_sequence_ends_the_output_unless_it_is_to_be_ignored(served: Served) -> None:
    (prompt,) = prompts(served, [15], seed=8)
    end = served.stack.tokenizer.eos_token_ids

    async def sample(seeds: range) -> list[list[int]]:
        warm = [Sampling(temperature=1.6, seed=seed) for seed in seeds]
        return await asyncio.gather(
            *(served.tokens(prompt, 120, sampling=sampling, ignore_eos=False) for sampling in warm)
        )

    # About a third of the samples end by themselves this early: no longer is sampled than until one has.
    for first in range(0, 64, 8):
        outputs = served.run(sample(range(first, first + 8)))
        assert all(token not in end for tokens in outputs for token in tokens[:-1])
        if any(tokens[-1] in end for tokens in outputs):
            return
    pytest.fail("no sample ended by itself: the test needs a warmer temperature")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt": []}, "empty"),
        ({"prompt": [10**6]}, "token ids"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": [300] * 100_000}, "context"),
        ({"max_tokens": 100_000}, "context"),
    ],
    ids=["empty", "unknown-token", "no-tokens", "long-prompt", "long-output"],
)
def test_a_request_that_can_never_be_served_is_refused(served: Served, change: dict[str, Any], named: str) -> None:
    async def ask() -> None:
        arguments = {"prompt": [300, 301], "max_tokens": 4} | change
        with pytest.raises(InvalidRequest, match=named):
            served.submit(**arguments)

    served.run(ask())


def test_tokens_are_the_same_with_and_without_cached_prefixes(served: Served) -> None:
    """A conversation whose every turn is asked twice: behind what the cache holds, and under a salt of its own."""
    if not served.caches:
        return  # nothing is cached, so there are no two ways
    turns = prompts(served, [LONG, 50, 20], seed=11)

    async def talk(salt: str, *, fresh: bool) -> list[list[int]]:
        said: list[list[int]] = []
        so_far: list[int] = []
        for number, turn in enumerate(turns):
            so_far += turn
            own = f"{salt}-{number}" if fresh else salt
            said.append(await served.tokens(so_far, 21, cache_salt=own))
            cached = served.log.lookups[f"r{served.asked - 1}"].cached_tokens
            assert (cached > 0) == (number > 0 and not fresh)
            so_far += said[-1]
        return said

    async def both() -> None:
        # The tests before this one asked many prompts that share nothing, after which nothing is kept.
        for _ in range(2):
            await served.tokens(turns[0], 2, cache_salt="shares something")
        kept = await talk("kept", fresh=False)
        assert kept == await talk("fresh", fresh=True)
        # Many at once, of which each begins like a turn that was kept.
        long = [*turns[0], *kept[0], *turns[1]]
        ends = prompts(served, [5, 9, 33, 40], seed=12)
        together = await asyncio.gather(*[served.tokens([*long, *end], 9, cache_salt="kept") for end in ends])
        alone = [await served.tokens([*long, *end], 9, cache_salt=f"alone {n}") for n, end in enumerate(ends)]
        assert together == alone

    served.run(both())


def test_tenants_share_no_prefixes(served: Served) -> None:
    (prompt,) = prompts(served, [LONG], seed=13)

    async def ask(salt: str) -> int | None:
        await served.tokens(prompt, 2, cache_salt=salt)
        lookup = served.log.lookups.get(f"r{served.asked - 1}")
        return None if lookup is None else lookup.cached_tokens

    async def all_of_them() -> list[int | None]:
        return [await ask("one"), await ask("another"), await ask("one")]

    first, second, third = served.run(all_of_them())
    if served.caches:
        assert (first, second) == (0, 0)
        assert third is not None
        assert third > 0
    else:
        assert (first, second, third) == (None, None, None)


def test_a_prefix_cache_tells_its_hits_once(served: Served) -> None:
    (prompt,) = prompts(served, [200], seed=9)

    async def twice() -> list[str]:
        names = []
        for _ in range(2):
            generation = served.submit(prompt, 2)
            names.append(generation.request_id)
            async for _delta in generation:
                pass
        return names

    first, second = served.run(twice())
    if served.caches:
        assert served.log.lookups[first].cached_tokens == 0
        assert 0 < served.log.lookups[second].cached_tokens < len(prompt)
    else:  # an encoder's prompts share nothing, so there is nothing to say
        assert second not in served.log.lookups
