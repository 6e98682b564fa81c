"""Prompts in groups that begin alike."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from muai_lab.settings.lab import LabSettings
from muai_lab.workload.draw import draw_schedule
from muai_lab.workload.kinds.shared_prefix import popularity_weights
from muai_lab.workload.schedule import Schedule
from tests.unit.word_tokenizer import WordTokenizer


def draw(requests: int = 400, context_tokens: int | None = None, **workload: Any) -> Schedule:
    settings = LabSettings.model_validate(
        {
            "arrival": {"kind": "closed"},
            "load": {"requests": requests},
            "workload": {"kind": "shared_prefix", "prefix_tokens": {"distribution": "fixed", "value": 20}, **workload},
        }
    )
    return draw_schedule(settings, WordTokenizer(), context_tokens)


def test_prompts_of_a_group_begin_alike_and_go_on_differently() -> None:
    schedule = draw(groups=3)

    beginnings: dict[int, set[str]] = {}
    for request in schedule:
        head, _, tail = (request.prompt or "").partition("\n")
        beginnings.setdefault(request.prefix_group or 0, set()).add(head)
        assert len(head.split()) == 20
        assert tail
    assert len(beginnings) == 3
    assert all(len(heads) == 1 for heads in beginnings.values())
    assert len({request.prompt for request in schedule}) == 400


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_prefix_and_own_part_together_have_the_recorded_length(api: str) -> None:
    schedule = draw(api=api, prompt_tokens={"distribution": "fixed", "value": 12})

    tokenizer = WordTokenizer()
    for request in schedule:
        alone = tokenizer.encode(request.prompt or "")
        whole = tokenizer.encode_chat([{"role": "user", "content": request.prompt or ""}]) if api == "chat" else alone
        assert len(whole) == request.prompt_tokens == 32


def test_groups_are_asked_as_often_as_zipfs_law_says() -> None:
    count = 4000
    counts = Counter(request.prefix_group for request in draw(count, groups=5, popularity=1.0))

    expected = np.array([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    expected *= count / expected.sum()
    seen = np.array([counts[group] for group in range(5)])
    # Pearson's statistic: chi-square with 4 degrees of freedom exceeds 18.5 once in a thousand.
    assert (((seen - expected) ** 2) / expected).sum() < 18.5


def test_without_preference_every_group_is_as_likely() -> None:
    assert popularity_weights(4, 0.0).tolist() == [0.25] * 4


def test_a_prefix_is_kept_whole_where_the_prompt_must_be_cut() -> None:
    schedule = draw(
        100,
        context_tokens=40,
        groups=2,
        prompt_tokens={"distribution": "fixed", "value": 64},
        output_tokens={"distribution": "fixed", "value": 8},
    )

    assert {request.prompt_tokens + request.max_tokens for request in schedule} == {40}
    assert len({(request.prompt or "").partition("\n")[0] for request in schedule}) == 2
    assert schedule.notes == ("cut to fit the model's context of 40 tokens: 100 prompts",)
