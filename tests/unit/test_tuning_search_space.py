"""Search spaces: read, checked against the settings' catalogue, and turned into configurations."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.errors import SettingsError
from muai_lab.settings.changes import with_values
from muai_lab.settings.compose import compose
from muai_lab.settings.hydra_groups import SEARCH_SPACES, groups_folder
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.space_file import read_search_space, space_of

SIZE, HOLD = "optimization.batcher.max_batch_size", "optimization.batcher.batch_timeout_ms"
CACHE, BYTES = "optimization.cache.enabled", "optimization.cache.max_memory_mb"
SMALL = {SIZE: {"low": 1, "high": 64, "log": True}, HOLD: {"low": 0, "high": 100, "step": 10}}


def problems_of(parameters: dict) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        space_of(parameters)
    return caught.value.problems


@pytest.mark.parametrize("name", sorted(file.stem for file in (groups_folder() / SEARCH_SPACES).glob("*.yaml")))
def test_every_space_that_ships_is_valid_and_holds_the_defaults(name: str) -> None:
    defaults = OptimizationSettings()

    space = read_search_space(name).including(defaults)

    assert with_values(defaults, space.point_of(defaults)).model_dump() == defaults.model_dump()


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({}, "empty"),
        ({"optimization.batcher.max_batchsize": {"low": 1, "high": 2}}, f"did you mean {SIZE}"),
        ({"batcher.batch_timeout_ms": {"low": 1, "high": 2}}, f"did you mean {HOLD}"),
        ({"monitoring.enabled": {}}, "only keys of the section optimization"),
        ({"optimization.engine_preference": {}}, "cannot be searched"),
        ({SIZE: {"low": 0, "high": 8}}, "low 0: expected an integer, at least 1"),
        ({SIZE: {"low": 8, "high": 2}}, "low (8) is above high (2)"),
        ({SIZE: {"low": 8, "high": 8}}, "nothing to search"),
        ({SIZE: {"low": 1}}, "`high` is missing"),
        ({SIZE: {"low": 1, "high": 8, "lgo": True}}, "did you mean low or log"),
        ({SIZE: {"low": 1, "high": 8, "log": True, "step": 1}}, "does not go with a logarithmic scale"),
        ({HOLD: {"low": 0, "high": 8, "log": True}}, "needs low above 0"),
        ({HOLD: {"low": 0, "high": 8, "step": 9}}, "step 9: expected an integer from above 0 to 8"),
        ({HOLD: {"low": 0, "high": 8, "type": "float"}}, "the key is of type int"),
        ({SIZE: {"choices": []}}, "expected `choices`"),
        ({SIZE: {"choices": [4]}}, "the only choice is 4"),
        ({SIZE: {"choices": [4, 4]}}, "named twice"),
        ({SIZE: {"choices": [4, "8"]}}, 'choice "8"'),
        ({SIZE: 4}, "expected attributes"),
        ({"optimization.cache.eviction_policy": {"choices": ["lru", "filo"]}}, "did you mean fifo"),
        ({HOLD: {"low": 0, "high": 9, "when": {"optimization.cache.enabld": True}}}, f"did you mean {CACHE}"),
        ({HOLD: {"low": 0, "high": 9, "when": {CACHE: "yes"}}}, "expected true or false"),
        ({HOLD: {"low": 0, "high": 9, "when": {SIZE: 99}}, SIZE: {"low": 1, "high": 8}}, "never gives it that value"),
        ({HOLD: {"low": 0, "high": 9, "when": {SIZE: 4}}, SIZE: {"choices": [2, 4], "when": {HOLD: 2}}}, "on itself"),
    ],
)
def test_a_mistake_is_answered_with_what_would_be_right(parameters: dict, told: str) -> None:
    assert any(told in problem for problem in problems_of(parameters)), problems_of(parameters)


def test_all_mistakes_are_told_together() -> None:
    assert len(problems_of({SIZE: {"low": 0, "high": 8}, HOLD: {"low": 9, "high": 1}})) == 2


def test_an_unknown_space_is_answered_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean onnx"):
        read_search_space("onx")


def test_a_space_is_chosen_by_a_key_and_no_group() -> None:
    with pytest.raises(SettingsError, match=r"did you mean tuning\.search_space"):
        compose(["search_space=onnx"])


def test_a_file_may_build_on_another_and_take_a_key_out_again(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        f"include: batching\nparameters:\n  {CACHE}: null\n  {BYTES}: null\n  {SIZE}: {{choices: [2, 4]}}\n"
    )

    space = read_search_space(str(mine))

    assert CACHE not in space.paths
    assert HOLD in space.paths
    assert space.highest(SIZE) == 4


def test_a_file_that_includes_itself_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("include: mine\n")

    with pytest.raises(SettingsError, match="includes itself"):
        read_search_space(str(mine))


def test_a_key_whose_condition_does_not_hold_is_no_part_of_the_point() -> None:
    space = space_of({BYTES: {"choices": [16, 64], "when": {CACHE: True}}, CACHE: {"choices": [True, False]}})
    off = OptimizationSettings.model_validate({"cache": {"enabled": False}})

    assert space.paths == (CACHE, BYTES)
    assert space.point_of(off) == {CACHE: False}


def test_a_condition_may_name_a_key_that_does_not_move() -> None:
    space = space_of({**SMALL, BYTES: {"choices": [16, 64], "when": {CACHE: True}}})
    trial = optuna.create_study().ask()

    assert BYTES in space.suggest(trial, OptimizationSettings())
    assert BYTES not in space.point_of(OptimizationSettings.model_validate({"cache": {"enabled": False}}))


def test_values_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SettingsError, match="min_batch_size"):
        with_values(OptimizationSettings(), {SIZE: 2, "optimization.batcher.min_batch_size": 4})


def test_what_was_not_set_stays_not_set() -> None:
    changed = with_values(OptimizationSettings.model_validate({"enabled": True}), {SIZE: 4})

    assert changed.model_dump(exclude_unset=True) == {"enabled": True, "batcher": {"max_batch_size": 4}}


@given(st.integers(1, 500), st.integers(0, 1000))
@settings(deadline=None)
def test_the_present_configuration_always_lies_in_the_widened_space(size: int, hold: int) -> None:
    present = OptimizationSettings.model_validate({"batcher": {"max_batch_size": size, "batch_timeout_ms": hold}})

    space = space_of(SMALL).including(present)

    assert all(parameter.low <= value_of(present, parameter.path) <= parameter.high for parameter in space)


def value_of(present: OptimizationSettings, path: str) -> int:
    return {SIZE: present.batcher.max_batch_size, HOLD: present.batcher.batch_timeout_ms}[path]
