"""Whether a trial helped, whether the workload is another, and how far knobs move."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.settings.schema import BatcherSettings, CacheSettings, OptimizationSettings, TunerSettings
from muai_lab.stack.online.judge import compare
from muai_lab.stack.online.knobs import Knob, KnobBounds, Reach, Values, bounds_of, values_of
from muai_lab.stack.online.shift import shifts, workload
from muai_lab.stack.online.window import Block, Targets

CHAT = Targets(ttft_s=1.0)
HOME = Values(8, 50, 100)


def unsaturated(good: int, late: int = 0) -> Block:
    return Block(seconds=6.0, busy_s=3.0, queued=good + late, good=good, late=late, ended=good)


def saturated(good: int = 0, late: int = 0, ready: int = 0, tokens: int = 0) -> Block:
    busy = Block(seconds=6.0, busy_s=6.0, short_s=6.0, queued=50, good=good, late=late, ready=ready, ended=ready)
    busy.output_tokens = tokens
    return busy


def noisy(mean: float, seed: int, count: int = 10) -> list[int]:
    draw = random.Random(seed)
    return [round(draw.gauss(mean, mean / 10)) for _ in range(count)]


# The objective


def test_while_requests_are_served_as_they_come_the_share_of_good_ones_counts_and_not_their_number() -> None:
    busy, quiet = [unsaturated(20) for _ in range(10)], [unsaturated(10) for _ in range(10)]

    comparison = compare(busy, quiet, CHAT)

    assert comparison.what == "share of good requests"
    assert not comparison.worse(1.0)


def test_while_there_is_always_more_to_do_the_rate_of_good_requests_counts() -> None:
    comparison = compare([saturated(good=10)] * 10, [saturated(good=15)] * 10, CHAT)

    assert (comparison.what, comparison.before, comparison.after) == ("good requests/s", 10 / 6, 15 / 6)
    assert comparison.better(3.0)


def test_where_a_queue_makes_everything_late_what_drains_it_counts() -> None:
    before = [saturated(late=20, ready=good) for good in noisy(20, 1)]
    after = [saturated(late=20, ready=good) for good in noisy(30, 2)]

    comparison = compare(before, after, CHAT)

    assert comparison.what == "good but for the queue/s"
    assert comparison.better(3.0)


def test_without_targets_output_tokens_count() -> None:
    before = [saturated(tokens=tokens) for tokens in noisy(1000, 1)]
    after = [saturated(tokens=tokens) for tokens in noisy(1300, 2)]

    assert compare(before, after, Targets()).what == "output tokens/s"
    assert compare(before, after, Targets()).better(3.0)
    assert compare(after, before, Targets()).worse(3.0)


# Noise


@pytest.mark.parametrize("seed", range(5))
def test_a_difference_within_the_noise_is_none(seed: int) -> None:
    before = [saturated(good=good) for good in noisy(20, seed)]
    after = [saturated(good=good) for good in noisy(20.3, seed + 100)]

    comparison = compare(before, after, CHAT)

    assert not comparison.better(3.0)
    assert not comparison.worse(3.0)


def test_a_difference_that_does_not_matter_is_none_however_sure_it_is() -> None:
    comparison = compare([saturated(good=1000)] * 10, [saturated(good=1005)] * 10, CHAT)

    assert not comparison.better(3.0)


def test_bursts_that_have_become_rarer_are_seen_although_they_make_the_share_uncertain() -> None:
    before = [unsaturated(20), unsaturated(2, 18), *[unsaturated(20)] * 3, unsaturated(1, 30), unsaturated(12, 8)]
    after = [unsaturated(20)] * 20

    assert compare(before, after, CHAT).better(1.7)


def test_one_bad_block_of_ten_is_not_enough() -> None:
    before = [unsaturated(20)] * 9 + [unsaturated(0, 20)]

    assert not compare(before, [unsaturated(20)] * 10, CHAT).better(1.7)


# Another workload


def arrivals(rate: float, prompt: int = 100, output: int = 50, *, seed: int = 0, count: int = 20) -> list[Block]:
    draw = random.Random(seed)
    blocks = []
    for _ in range(count):
        number = max(0, round(draw.gauss(rate * 6, (rate * 6) ** 0.5)))
        prompts = [max(1, round(draw.gauss(prompt, prompt / 4))) for _ in range(number)]
        block = Block(seconds=6.0, queued=number, prompt_tokens=sum(prompts), admitted=number, ended=number)
        block.prompt_squares = sum(tokens**2 for tokens in prompts)
        block.ended_tokens, block.ended_squares = output * number, output**2 * number
        blocks.append(block)
    return blocks


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (arrivals(6.0, seed=2), ["arrivals"]),
        (arrivals(1.5, seed=2), ["arrivals"]),
        (arrivals(3.0, prompt=300, seed=2), ["prompt tokens"]),
        (arrivals(3.0, output=100, seed=2), ["output tokens"]),
        (arrivals(6.0, prompt=300, seed=2), ["arrivals", "prompt tokens"]),
        ([Block(seconds=6.0)] * 10, ["arrivals"]),
    ],
)
def test_a_shift_is_seen_and_named(after: list[Block], words: list[str]) -> None:
    found = shifts(workload(arrivals(3.0, seed=1)), workload(after))

    assert [text.rsplit(" ", 3)[0] for text in found] == words


@pytest.mark.parametrize("seed", range(2, 30))
def test_the_same_workload_is_none(seed: int) -> None:
    assert shifts(workload(arrivals(3.0, seed=1)), workload(arrivals(3.0, seed=seed, count=10))) == []


def test_prefix_hits_that_appear_are_a_shift_unless_they_are_to_be_ignored() -> None:
    def hits(share: float) -> list[Block]:
        blocks = arrivals(3.0, seed=1)
        for block in blocks:
            block.looked_up, block.cached = block.prompt_tokens, round(share * block.prompt_tokens)
        return blocks

    before, after = workload(hits(0.0)), workload(hits(0.5))

    assert [text.split(" 0")[0] for text in shifts(before, after)] == ["prefix hits"]
    assert shifts(before, after, ignore=frozenset({"prefix hits"})) == []


# Knobs


def walk(bounds: KnobBounds, values: Values, knob: Knob, rungs: int) -> Iterator[int]:
    while (values_or_none := bounds.step(values, knob, rungs)) is not None:
        values = values_or_none
        yield values.of(knob)


ALL = KnobBounds({Knob.BATCH: Reach(1, 64), Knob.TIMEOUT: Reach(0, 200), Knob.CACHE: Reach(0, 400)})


@pytest.mark.parametrize(
    ("knob", "rungs", "steps"),
    [
        (Knob.BATCH, 2, [16, 32, 64]),
        (Knob.BATCH, 1, [12, 16, 24, 32, 48, 64]),
        (Knob.BATCH, -2, [4, 2, 1]),
        (Knob.TIMEOUT, 1, [100, 200]),
        (Knob.TIMEOUT, -1, [25, 12, 0]),
        (Knob.CACHE, 1, [400]),
        (Knob.CACHE, -1, [0]),
    ],
)
def test_each_knob_has_its_ladder(knob: Knob, rungs: int, steps: list[int]) -> None:
    assert list(walk(ALL, HOME, knob, rungs)) == steps


def test_a_hold_of_nothing_can_grow_again() -> None:
    assert list(walk(ALL, Values(8, 0, 100), Knob.TIMEOUT, 1)) == [10, 20, 40, 80, 160, 200]


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 500), st.sampled_from([-2, -1, 1, 2]))
def test_a_step_never_leaves_its_reach_and_always_moves(batch: int, one: int, other: int, rungs: int) -> None:
    reach = Reach(min(one, other), max(one, other))
    start = Values(reach.clip(batch), 0, 0)

    after = KnobBounds({Knob.BATCH: reach}).step(start, Knob.BATCH, rungs)

    if after is None:
        assert start.max_batch_size == (reach.high if rungs > 0 else reach.low)
    else:
        assert reach.low <= after.max_batch_size <= reach.high
        assert (after.max_batch_size > start.max_batch_size) == (rungs > 0)


def reaches(*, slots: int = 64, caches: bool = True, **sections: object) -> dict[Knob, Reach]:
    return bounds_of(OptimizationSettings(**sections), slots=slots, caches=caches).reaches  # type: ignore[arg-type]


def test_the_reach_of_each_knob_follows_from_the_settings() -> None:
    tuner = TunerSettings(cache_max_memory_mb=9000)
    batcher = BatcherSettings(max_batch_size=32, min_batch_size=4, batch_timeout_ms=50)

    assert reaches(batcher=batcher, tuner=tuner) == {
        Knob.BATCH: Reach(4, 64),
        Knob.TIMEOUT: Reach(0, 200),
        Knob.CACHE: Reach(0, 9000),
    }


@pytest.mark.parametrize(
    ("sections", "missing"),
    [
        ({"tuner": TunerSettings(enable_batch_size_tuning=False)}, Knob.BATCH),
        ({"tuner": TunerSettings(enable_timeout_tuning=False)}, Knob.TIMEOUT),
        ({"tuner": TunerSettings(enable_cache_size_tuning=False)}, Knob.CACHE),
        ({"cache": CacheSettings(enabled=False)}, Knob.CACHE),
        ({"caches": False}, Knob.CACHE),
        ({"batcher": BatcherSettings(min_batch_size=1)}, Knob.TIMEOUT),  # nothing is ever held
        ({"batcher": BatcherSettings(enabled=False)}, Knob.BATCH),
    ],
)
def test_a_knob_that_may_not_or_need_not_move_stays_where_it_is(sections: dict[str, object], missing: Knob) -> None:
    given: dict[str, object] = {"batcher": BatcherSettings(min_batch_size=2), **sections}

    assert missing not in reaches(**given)  # type: ignore[arg-type]


def test_a_cache_that_is_off_has_no_size() -> None:
    assert values_of(OptimizationSettings(cache=CacheSettings(enabled=False))) == Values(32, 50, 0)


def test_values_are_brought_within_the_bounds() -> None:
    bounds = KnobBounds({Knob.BATCH: Reach(2, 16)})

    assert bounds.clip(Values(64, 400, 900), HOME) == Values(16, HOME.batch_timeout_ms, HOME.max_memory_mb)
