"""Partial changes of the optimization section."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.errors import SettingsError
from muai_lab.settings.changes import with_values
from muai_lab.settings.live import changed, differs_only_live, live_changes
from muai_lab.settings.schema import OptimizationSettings

VALUES = {
    "optimization.enabled": False,
    "optimization.engine_preference": ("onnx",),
    "optimization.batcher.max_batch_size": 64,
    "optimization.batcher.min_batch_size": 2,
    "optimization.cache.max_memory_mb": 7,
    "optimization.onnx.threads": None,
}


def nested(values: dict[str, object]) -> dict[str, object]:
    tree: dict[str, dict[str, object]] = {"": {}}
    for path, value in values.items():
        *section, name = path.split(".")[1:]
        tree.setdefault("".join(section), {})[name] = value
    return {**tree.pop(""), **tree}


@given(st.sets(st.sampled_from(sorted(VALUES))))
def test_a_change_sets_the_keys_that_it_names_and_nothing_else(paths: set[str]) -> None:
    values = {path: VALUES[path] for path in sorted(paths)}

    after = with_values(OptimizationSettings(), nested(values))

    assert after.model_dump(exclude_unset=True) == nested(values)
    assert after == with_values(OptimizationSettings(), values)
    assert after == with_values(
        OptimizationSettings(), {path.removeprefix("optimization."): value for path, value in values.items()}
    )


def test_a_default_that_gave_way_before_stays_where_it_is() -> None:
    before = OptimizationSettings.model_validate({"batcher": {"min_batch_size": 64}})

    after = with_values(before, {"batcher": {"min_batch_size": 8}})

    assert (after.batcher.min_batch_size, after.batcher.max_batch_size) == (8, 64)
    assert after.batcher.model_fields_set == {"min_batch_size"}


def test_a_default_does_not_give_way_to_a_change() -> None:
    with pytest.raises(SettingsError, match=r"optimization\.batcher: min_batch_size \(64\) is above max_batch_size"):
        with_values(OptimizationSettings(), {"batcher.min_batch_size": 64})


def test_all_problems_are_named_with_their_keys() -> None:
    with pytest.raises(SettingsError) as caught:
        with_values(
            OptimizationSettings(),
            {
                "optimization.onnx.thread": 2,
                "cache": {"eviction_policy": "lfu"},
                "batcher": 3,
                "pytorch": None,
                "models.mine": "here",
            },
        )

    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        "optimization.onnx.thread",
        'optimization.cache.eviction_policy = "lfu"',
        "optimization.batcher",
        "optimization.pytorch",
        "optimization.models.mine",
    ]
    assert "did you mean optimization.onnx.threads" in caught.value.problems[0]


def test_live_changes_bring_a_running_system_to_another_configuration() -> None:
    present = OptimizationSettings.model_validate({"batcher": {"max_slots": 32}})
    wanted = with_values(present, {"batcher": {"max_batch_size": 16}, "tuner": {"enabled": True}})
    opened = with_values(present, {"batcher": {"max_slots": 64}})

    assert differs_only_live(present, wanted)
    assert changed(present, live_changes(wanted)) == wanted
    assert not differs_only_live(present, opened)
    assert not differs_only_live(present, with_values(present, {"pytorch": {"threads": 1}}))
