"""When the prefix cache keeps what it is given: what is copied while prompts share something, and while they do not."""

from __future__ import annotations

from itertools import count

import pytest

from muai_lab.stack.prefix_cache import PrefixCache
from muai_lab.stack.prefix_reuse import PrefixReuse
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.sharing import PATIENCE

BLOCK = 4
_NAMES = count()


class Payload:
    nbytes = 1


def reuse(budget: int = 10_000) -> PrefixReuse:
    return PrefixReuse(PrefixCache(budget, block_bytes=1, block_tokens=BLOCK))


def unique(blocks: int = 3) -> list[int]:
    """A prompt that begins like no other."""
    return [next(_NAMES) for _ in range(BLOCK * blocks + 1)]


def serve(stack: PrefixReuse, prompt: list[int], answer: list[int] | None = None) -> tuple[int, int]:
    """Tokens of the prompt that were found, and blocks that were kept of it and of its answer."""
    match = stack.find(GenerationRequest("name", prompt, 8))
    stack.use(match, 0)
    stack.keep(0, prompt, "")
    if answer:
        stack.keep(0, prompt + answer, "")
    outs, _ = stack.copies()
    for copy in outs:
        stack.copied_out(copy, [Payload()] * len(copy.store.blocks))
    stack.copied_in()
    return match.tokens, sum(len(copy.store.blocks) for copy in outs)


def serve_unique(stack: PrefixReuse, requests: int) -> list[int]:
    """Blocks kept of each."""
    return [serve(stack, unique())[1] for _ in range(requests)]


def test_prompts_that_share_nothing_are_soon_no_longer_kept() -> None:
    kept = serve_unique(reuse(), PATIENCE + 10)
    assert kept == [3] * (PATIENCE - 1) + [0] * 11


def test_the_first_prompt_that_comes_again_is_kept_and_all_after_it() -> None:
    stack = reuse()
    serve_unique(stack, PATIENCE)
    prompt = unique()
    assert serve(stack, prompt) == (0, 0)
    assert serve(stack, prompt) == (0, 3)
    assert serve(stack, prompt) == (3 * BLOCK, 0)
    assert serve_unique(stack, 1) == [3]


def test_the_next_turn_of_a_conversation_that_was_not_kept_brings_keeping_back() -> None:
    stack = reuse()
    serve_unique(stack, PATIENCE)
    history = unique()
    assert serve(stack, history, unique(1)) == (0, 0)
    history += unique(2)
    assert serve(stack, history, unique(1))[1] > 0
    assert serve(stack, history + unique(1))[0] == len(history) // BLOCK * BLOCK


def test_a_system_prompt_shared_by_all_is_found_though_what_follows_it_is_no_longer_kept() -> None:
    stack = reuse()
    system = unique(2)[: 2 * BLOCK]
    served = [serve(stack, system + unique(2)) for _ in range(PATIENCE + 10)]
    assert served[0] == (0, 4)
    assert served[1] == (2 * BLOCK, 2)
    assert served[-1] == (2 * BLOCK, 0)


def test_a_further_shared_block_brings_keeping_back() -> None:
    stack = reuse()
    system = unique(2)[: 2 * BLOCK]
    for _ in range(PATIENCE + 10):
        serve(stack, system + unique(2))
    instructions = unique(1)[:BLOCK]
    assert serve(stack, system + instructions + unique(1))[1] == 0
    assert serve(stack, system + instructions + unique(1))[1] == 2
    assert serve(stack, system + instructions + unique(1))[0] == 3 * BLOCK


def test_conversations_among_prompts_that_share_nothing_are_kept() -> None:
    stack = reuse()
    history: list[int] = unique()
    for _ in range(5):
        found, _ = serve(stack, history)
        history += unique(1)
        serve_unique(stack, PATIENCE // 2)
    assert found == (len(history) - 2 * (BLOCK + 1)) // BLOCK * BLOCK


def test_a_block_that_is_found_again_and_again_does_not_count_as_news() -> None:
    stack = reuse()
    prompt = unique()
    for _ in range(PATIENCE):
        serve(stack, prompt[: BLOCK + 1])
    assert serve_unique(stack, PATIENCE)[-1] == 0


@pytest.mark.parametrize("budget", [0, 1])
def test_a_cache_that_is_switched_on_keeps_again(budget: int) -> None:
    stack = reuse()
    serve_unique(stack, PATIENCE)
    stack.set_cache(budget, "lru")
    serve_unique(stack, 2)
    stack.set_cache(10_000, "lru")
    assert serve_unique(stack, 1) == ([3] if budget == 0 else [0])
