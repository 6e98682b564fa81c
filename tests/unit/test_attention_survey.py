"""What a model's attention is first called with: heads that cannot belong together are named, not divided by."""

from __future__ import annotations

import pytest
import torch

from muai_lab.engines.pytorch.attention import AttentionCall, Survey


def heads(count: int) -> torch.Tensor:
    return torch.zeros(1, count, 2, 8)


@pytest.mark.parametrize(("query", "key"), [(4, 0), (0, 2), (0, 0), (4, 3), (2, 4)])
def test_heads_that_do_not_fit_each_other_are_named(query: int, key: int) -> None:
    with pytest.raises(ValueError, match=f"layer 5 attends with {query} query heads over {key} key heads"):
        Survey().attend(AttentionCall(5, heads(query), heads(key), heads(key)))


@pytest.mark.parametrize(("query", "key"), [(4, 4), (4, 2), (4, 1)])
def test_key_heads_may_be_shared(query: int, key: int) -> None:
    survey = Survey()
    attended = survey.attend(AttentionCall(0, heads(query), heads(key), heads(key)))
    assert attended.shape == (1, 2, query, 8)
    assert survey.shapes[0].heads == key
