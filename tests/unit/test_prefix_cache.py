"""What the prefix cache keeps, finds and gives up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from muai_lab.stack.prefix_cache import Match, Policy, PrefixCache

BLOCK = 4  # tokens
BYTES = 10


@dataclass(frozen=True)
class Sized:
    """A payload of which only the size matters."""

    nbytes: int = BYTES


def cache_of(blocks: int, policy: Policy = "lru", **more: str) -> PrefixCache:
    return PrefixCache(blocks * BYTES, block_bytes=BYTES, block_tokens=BLOCK, policy=policy, **more)


def store(cache: PrefixCache, tokens: Sequence[int], salt: str = "") -> int:
    """Store and fill in; how many blocks were new."""
    new = cache.store(tokens, salt)
    cache.fill(new, [Sized()] * len(new.blocks))
    return len(new.blocks)


def hit(cache: PrefixCache, prompt: Sequence[int], salt: str = "") -> int:
    """Tokens that a lookup finds."""
    match = cache.match(prompt, salt)
    cache.release(match)
    return match.tokens


def sequence(name: int, tokens: int) -> list[int]:
    return [1000 * name + position for position in range(tokens)]


def test_a_stored_prefix_is_found_in_whole_blocks() -> None:
    cache = cache_of(10)
    assert store(cache, sequence(1, 10)) == 2

    assert hit(cache, sequence(1, 10)) == 8
    assert hit(cache, [*sequence(1, 6), 7, 7, 7, 7]) == 4
    assert hit(cache, sequence(2, 10)) == 0
    assert cache.counts.stored_bytes == 2 * BYTES


def test_the_last_token_of_a_prompt_is_always_left_to_compute() -> None:
    cache = cache_of(10)
    store(cache, sequence(1, 8))

    assert hit(cache, sequence(1, 8)) == 4
    assert hit(cache, sequence(1, 9)) == 8
    assert hit(cache, [1000]) == 0


def test_the_next_turn_of_a_conversation_stores_only_what_is_new() -> None:
    cache = cache_of(10)
    turn = sequence(1, 12)
    store(cache, turn)

    new = cache.store([*turn, *sequence(2, 8)])

    assert new.begin == 12
    assert len(new.blocks) == 2


def test_the_same_tokens_behind_another_prefix_are_another_block() -> None:
    cache = cache_of(10)
    store(cache, [*sequence(1, 4), *sequence(9, 4)])

    assert hit(cache, [*sequence(2, 4), *sequence(9, 4), 0]) == 0
    assert hit(cache, [*sequence(9, 4), 0]) == 0


def test_tenants_do_not_see_each_others_prefixes() -> None:
    cache = cache_of(10)
    store(cache, sequence(1, 9), salt="one tenant")

    assert hit(cache, sequence(1, 9), salt="another") == 0
    assert hit(cache, sequence(1, 9)) == 0
    assert hit(cache, sequence(1, 9), salt="one tenant") == 8


def test_digests_depend_on_the_model() -> None:
    digests = {cache_of(1, seed=seed).store(sequence(1, 4)).blocks[0].digest for seed in ("fp32", "bf16")}

    assert len(digests) == 2


class Colliding(PrefixCache):
    """A cache whose digests say nothing but the place in the sequence."""

    def _digests(self, pieces: Sequence[bytes], salt: str) -> list[bytes]:
        return [bytes([place]) for place in range(len(pieces))]


def test_tokens_are_compared_besides_the_digests() -> None:
    cache = Colliding(100, block_bytes=BYTES, block_tokens=BLOCK)
    store(cache, sequence(1, 8), salt="one")

    assert hit(cache, sequence(2, 9), salt="one") == 0
    assert hit(cache, sequence(1, 9), salt="two") == 0
    assert hit(cache, [*sequence(2, 4), *sequence(1, 9)[4:]], salt="one") == 0
    assert hit(cache, sequence(1, 9), salt="one") == 8
    assert store(cache, sequence(2, 8), salt="one") == 0, "a block was replaced by another with the same digest"


def test_lru_evicts_what_was_not_used_for_longest() -> None:
    cache = cache_of(2, "lru")
    store(cache, sequence(1, 4))
    store(cache, sequence(2, 4))
    hit(cache, sequence(1, 5))

    store(cache, sequence(3, 4))

    assert [hit(cache, sequence(name, 5)) for name in (1, 2, 3)] == [4, 0, 4]
    assert cache.counts.evicted_blocks == 1


def test_fifo_evicts_what_was_stored_first() -> None:
    cache = cache_of(2, "fifo")
    store(cache, sequence(1, 4))
    store(cache, sequence(2, 4))
    hit(cache, sequence(1, 5))

    store(cache, sequence(3, 4))

    assert [hit(cache, sequence(name, 5)) for name in (1, 2, 3)] == [0, 4, 4]


@pytest.mark.parametrize("policy", ["lru", "fifo"])
def test_the_end_of_a_sequence_goes_before_its_beginning(policy: Policy) -> None:
    cache = cache_of(3, policy)
    store(cache, sequence(1, 12))

    store(cache, sequence(2, 4))

    assert hit(cache, sequence(1, 13)) == 8


def test_a_parent_counts_as_used_when_what_is_behind_it_was() -> None:
    cache = cache_of(3, "lru")
    store(cache, sequence(1, 8))
    store(cache, sequence(2, 4))
    hit(cache, sequence(1, 9))

    cache.resize(BYTES)  # evicts the other sequence, then this one's end

    assert hit(cache, sequence(1, 9)) == 4


def test_more_than_the_budget_is_stored_from_the_front() -> None:
    cache = cache_of(3)
    store(cache, sequence(1, 8))

    assert store(cache, sequence(2, 100)) == 3

    assert hit(cache, sequence(2, 100)) == 12
    assert cache.counts.stored_bytes == 3 * BYTES


def test_what_a_match_holds_is_not_evicted() -> None:
    cache = cache_of(2)
    store(cache, sequence(1, 8))
    match = cache.match(sequence(1, 9))

    assert store(cache, sequence(2, 4)) == 0, "there was no room beside what is in use"
    assert all(block.payload is not None for block in match.blocks)

    cache.release(match)
    assert store(cache, sequence(2, 4)) == 1


def test_what_is_not_filled_in_yet_is_not_evicted_either() -> None:
    cache = cache_of(2)
    pending = cache.store(sequence(1, 8))

    assert store(cache, sequence(2, 4)) == 0

    cache.fill(pending, [Sized(), Sized()])
    assert store(cache, sequence(2, 4)) == 1


def test_a_smaller_budget_holds_at_once_and_for_pinned_blocks_once_they_are_released() -> None:
    cache = cache_of(4)
    store(cache, sequence(1, 8))
    store(cache, sequence(2, 8))
    match = cache.match(sequence(1, 9))

    cache.resize(BYTES)
    assert cache.counts.stored_bytes == 2 * BYTES
    cache.release(match)

    assert cache.counts.stored_bytes == BYTES
    cache.resize(0)
    assert cache.counts.stored_bytes == 0
    assert not cache.on
    cache.resize(2 * BYTES)
    assert store(cache, sequence(1, 8)) == 2


def test_the_policy_can_change_while_blocks_are_stored() -> None:
    cache = cache_of(2, "lru")
    store(cache, sequence(1, 4))
    store(cache, sequence(2, 4))
    hit(cache, sequence(1, 5))

    cache.set_policy("fifo")
    store(cache, sequence(3, 4))

    assert [hit(cache, sequence(name, 5)) for name in (1, 2, 3)] == [0, 4, 4]


def test_a_payload_of_another_size_than_announced_is_refused() -> None:
    cache = cache_of(2)
    new = cache.store(sequence(1, 4))

    with pytest.raises(ValueError, match="has 11 bytes, not 10"):
        cache.fill(new, [Sized(11)])


def test_an_evicted_block_lets_go_of_its_payload() -> None:
    cache = cache_of(1)
    store(cache, sequence(1, 4))
    match: Match = cache.match(sequence(1, 5))
    cache.release(match)

    store(cache, sequence(2, 4))

    assert match.blocks[0].payload is None
