"""Choosing tokens: against independent references, with fixed seeds."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings

from muai_lab.engines.base import GREEDY, Sampling, SlotFaults
from muai_lab.engines.sampling import SlotSampler, _in_order_of_tokens

# Upper 0.1 % points of the chi-square distribution, by degrees of freedom (any statistics textbook's table).
CHI_SQUARE_999 = {3: 16.27, 5: 20.52, 9: 27.88}


def draw(logits: list[float], sampling: Sampling, count: int) -> list[int]:
    """`count` tokens of one slot from the same logits again and again."""
    sampler = SlotSampler()
    sampler.open(0, sampling)
    row = torch.tensor([logits])
    return [sampler.choose(row, [0])[0] for _ in range(count)]


def draw_many(logits: torch.Tensor, sampling: Sampling, slots: int, each: int) -> np.ndarray:
    """Tokens `[each, slots]`: slot i samples with seed i."""
    sampler = SlotSampler()
    for slot in range(slots):
        sampler.open(slot, Sampling(sampling.temperature, sampling.top_p, sampling.top_k, seed=slot))
    rows = logits.expand(slots, -1)
    return np.array([sampler.choose(rows, range(slots)) for _ in range(each)])


def reference_token(logits: np.ndarray, sampling: Sampling, uniform: float) -> int:
    """The definition, over the whole vocabulary in double precision."""
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits[order].astype(float) - logits.max()) / sampling.temperature)
    if sampling.top_k:
        weights[sampling.top_k :] = 0
    probabilities = weights / weights.sum()
    before = np.cumsum(probabilities) - probabilities
    probabilities[(before >= sampling.top_p) & (np.arange(len(order)) > 0)] = 0
    cumulative = np.cumsum(probabilities)
    place = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return int(order[min(place, np.count_nonzero(probabilities) - 1)])


def test_greedy_takes_the_likeliest_and_of_equals_the_first() -> None:
    assert draw([0.0, 3.0, 3.0, 1.0], GREEDY, 2) == [1, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0])
    expected = np.exp(logits.numpy().astype(float) / temperature)
    expected /= expected.sum()

    tokens = draw_many(logits, Sampling(temperature), slots=64, each=100)

    counts = np.bincount(tokens.ravel(), minlength=6)
    chi_square = float(((counts - 6400 * expected) ** 2 / (6400 * expected)).sum())
    assert chi_square < CHI_SQUARE_999[5]


def test_a_flat_vocabulary_beyond_the_sorted_head_is_drawn_from_whole() -> None:
    tokens = draw_many(torch.zeros(1000), Sampling(1.0), slots=64, each=100)

    counts = np.bincount(tokens.ravel() // 100, minlength=10)
    chi_square = float(((counts - 640) ** 2 / 640).sum())
    assert chi_square < CHI_SQUARE_999[9]


def test_truncated_distributions_keep_their_proportions() -> None:
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04]))
    expected = np.array([0.4, 0.3, 0.2]) / 0.9

    tokens = draw_many(logits, Sampling(1.0, top_p=0.85), slots=64, each=100)

    counts = np.bincount(tokens.ravel(), minlength=5)
    assert counts[3:].tolist() == [0, 0]
    assert float(((counts[:3] - 6400 * expected) ** 2 / (6400 * expected)).sum()) < CHI_SQUARE_999[3]


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    vocabulary=st.sampled_from([2, 40, 257, 900]),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0.1, 3.0),
        top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.01]),
        top_k=st.sampled_from([0, 1, 5, 300, 5000]),
        seed=st.integers(0, 2**63 - 1),
    ),
)
@example(seed=0, vocabulary=900, scale=0.1, sampling=Sampling(1.0, top_k=300, seed=0))
@example(seed=0, vocabulary=900, scale=3.0, sampling=Sampling(1.0, top_p=0.5, top_k=300, seed=0))
def test_any_draw_is_what_the_definition_gives(seed: int, vocabulary: int, scale: float, sampling: Sampling) -> None:
    logits = np.random.default_rng(seed).normal(0.0, scale, vocabulary).astype(np.float32)
    uniforms = np.random.Generator(np.random.Philox(sampling.seed)).random(5)

    tokens = draw(logits.tolist(), sampling, 5)

    assert tokens == [reference_token(logits, sampling, uniform) for uniform in uniforms]


def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_batch() -> None:
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(1))
    alone, crowded = SlotSampler(), SlotSampler()
    alone.open(0, Sampling(1.0, seed=7))
    for slot in range(8):
        crowded.open(slot, Sampling(1.0, seed=7) if slot == 5 else Sampling(0.5 * (slot % 2), seed=slot))

    for step in range(20):
        row = logits[5:6] + step
        in_a_crowd = logits + step
        order = list(range(8)) if step % 2 else [5, 0, 3]
        assert alone.choose(row, [0])[0] == crowded.choose(in_a_crowd[order], order)[order.index(5)]


def test_other_seeds_give_other_tokens_and_no_seed_gives_new_ones() -> None:
    logits = [0.0] * 100

    assert draw(logits, Sampling(1.0, seed=1), 20) != draw(logits, Sampling(1.0, seed=2), 20)
    assert draw(logits, Sampling(1.0), 20) != draw(logits, Sampling(1.0), 20)


def test_a_negative_seed_is_a_seed() -> None:
    logits = [0.0] * 100

    assert draw(logits, Sampling(1.0, seed=-1), 20) == draw(logits, Sampling(1.0, seed=-1), 20)
    assert draw(logits, Sampling(1.0, seed=-1), 20) != draw(logits, Sampling(1.0, seed=1), 20)


def test_a_slot_that_is_used_again_begins_its_seed_anew() -> None:
    sampler = SlotSampler()
    runs = []
    for _ in range(2):
        sampler.open(0, Sampling(1.0, seed=3))
        runs.append([sampler.choose(torch.zeros(1, 100), [0])[0] for _ in range(10)])
        sampler.release(0)

    assert runs[0] == runs[1]


def test_releasing_a_slot_that_was_never_used_is_harmless() -> None:
    SlotSampler().release(9)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1.0, {0, 1, 2}), (0.81, {0, 1, 2}), (0.8, {0, 1}), (0.5, {0}), (0.499, {0}), (1e-9, {0})]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().float()

    tokens = draw_many(logits, Sampling(1.0, top_p=top_p), slots=32, each=20)

    assert set(tokens.ravel().tolist()) == kept


@pytest.mark.parametrize(("top_k", "kept"), [(0, 4), (1, 1), (2, 2), (4, 4), (99, 4)])
def test_top_k_keeps_that_many(top_k: int, kept: int) -> None:
    tokens = draw_many(torch.tensor([0.3, 0.2, 0.1, 0.0]), Sampling(1.0, top_k=top_k), slots=32, each=20)

    assert set(tokens.ravel().tolist()) == set(range(kept))


def test_top_p_counts_within_what_top_k_left() -> None:
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))

    tokens = draw_many(logits, Sampling(1.0, top_p=0.57, top_k=2), slots=32, each=20)

    assert set(tokens.ravel().tolist()) == {0}  # 0.4 of the remaining 0.7 is more than 0.57


def test_a_token_that_is_ruled_out_is_never_drawn() -> None:
    tokens = draw_many(torch.tensor([0.0, float("-inf"), 0.0]), Sampling(5.0), slots=32, each=20)

    assert set(tokens.ravel().tolist()) == {0, 2}


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
def test_the_colder_the_greedier(temperature: float) -> None:
    assert draw([1.0, 1.001, 0.0], Sampling(temperature, seed=1), 10) == [1] * 10


def test_at_any_heat_every_token_is_still_a_token() -> None:
    assert set(draw([50.0, 0.0, -50.0], Sampling(1e30, seed=1), 200)) == {0, 1, 2}


def test_broken_logits_do_not_break_the_batch() -> None:
    sampler = SlotSampler()
    for slot in range(2):
        sampler.open(slot, Sampling(1.0, seed=1))

    tokens = sampler.choose(torch.tensor([[float("nan")] * 3, [0.0, 90.0, 0.0]]), [0, 1])

    assert tokens[0] in range(3)
    assert tokens[1] == 1


def test_low_precision_logits_are_sampled_in_high_precision() -> None:
    sampler = SlotSampler()
    sampler.open(0, Sampling(1.0, seed=1))

    assert sampler.choose(torch.tensor([[0.0, 80.0]], dtype=torch.bfloat16), [0]) == [1]


class Unsampled(Sampling):
    """Sampling that no check would let through: its temperature fails when it is read."""

    @property
    def temperature(self) -> float:  # type: ignore[override]
        raise OverflowError("no such temperature")


def test_a_row_that_cannot_be_drawn_leaves_the_others_their_own_tokens() -> None:
    rows = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    kinds = [Sampling(1.0, seed=1), Sampling(1.3, 0.9, seed=2), GREEDY, Sampling(0.7, top_k=9, seed=3)]
    alone, company = SlotSampler(), SlotSampler()
    for slot, sampling in enumerate(kinds):
        alone.open(slot, sampling)
        company.open(slot, sampling)
    company.open(4, Sampling(1.0))
    company._states[4].sampling = object.__new__(Unsampled)

    for _ in range(3):
        expected = alone.choose(rows[:4], range(4))
        with pytest.raises(SlotFaults) as caught:
            company.choose(rows, range(5))

        assert caught.value.tokens == dict(enumerate(expected))
        assert {slot: str(error) for slot, error in caught.value.faults.items()} == {4: "no such temperature"}


def test_when_no_row_can_be_drawn_the_step_itself_has_failed() -> None:
    sampler = SlotSampler()
    sampler.open(0, Sampling(1.0))
    sampler._states[0].sampling = object.__new__(Unsampled)

    with pytest.raises(OverflowError, match="no such temperature"):
        sampler.choose(torch.zeros(1, 3), [0])


def test_a_sequence_that_begins_again_goes_on_in_its_random_numbers() -> None:
    rows = torch.randn(8, 1, 50, generator=torch.Generator().manual_seed(2))

    def drawn(steps: range, already: int) -> list[int]:
        sampler = SlotSampler()
        sampler.open(0, Sampling(1.0, seed=11), drawn=already)
        return [sampler.choose(rows[step], [0])[0] for step in steps]

    assert drawn(range(5, 8), 5) == drawn(range(8), 0)[5:]


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 6), count=st.integers(1, 40))
def test_equal_logits_come_in_the_order_of_tokens_however_a_kernel_finds_them(
    seed: int, steps: int, count: int
) -> None:
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.integers(0, steps, size=(3, 40)).astype(np.float32))
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    found = torch.stack([tokens[torch.from_numpy(random.permutation(count))] for tokens in order[:, :count]])

    values, tokens = _in_order_of_tokens(logits, found)

    assert torch.equal(values, ordered[:, :count])
    assert torch.equal(tokens, order[:, :count])
