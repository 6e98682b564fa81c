"""Changes of a running system: laid over the settings whole, or refused whole."""

from __future__ import annotations

from typing import Any

import pytest

from muai_lab.errors import SettingsError
from muai_lab.settings.live import LIVE_SECTIONS, changed, differs_only_live, live_changes, live_view
from muai_lab.settings.schema import BatcherSettings, OptimizationSettings

SETTINGS = OptimizationSettings(batcher=BatcherSettings(max_batch_size=16, min_batch_size=2))


def problems(changes: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        changed(SETTINGS, changes)
    return str(caught.value)


def test_what_is_not_named_stays_as_it_was() -> None:
    after = changed(SETTINGS, {"batcher": {"max_batch_size": 8}, "cache": {"eviction_policy": "fifo"}})

    assert (after.batcher.max_batch_size, after.batcher.min_batch_size) == (8, 2)
    assert after.cache.eviction_policy == "fifo"
    assert SETTINGS.batcher.max_batch_size == 16
    assert "max_memory_mb" not in after.cache.model_fields_set  # vLLM asks whether somebody set it


def test_no_change_is_a_change_too() -> None:
    assert changed(SETTINGS, {}) == SETTINGS


def test_every_live_change_of_a_configuration_is_taken_and_makes_it() -> None:
    wanted = OptimizationSettings(batcher=BatcherSettings(max_batch_size=8, batch_timeout_ms=0))

    after = changed(SETTINGS, live_changes(wanted))

    assert live_view(after) == live_view(wanted)


@pytest.mark.parametrize(
    ("changes", "live"),
    [
        ({"batcher": {"max_batch_size": 8}, "cache": {"enabled": False}, "tuner": {"enabled": True}}, True),
        ({"batcher": {"max_slots": 64}}, False),
        ({"batcher": {"enabled": False}}, False),
        ({"pytorch": {"threads": 2}}, False),
    ],
)
def test_a_change_needs_a_restart_unless_every_key_is_live(changes: dict[str, Any], live: bool) -> None:
    assert differs_only_live(OptimizationSettings(), OptimizationSettings.model_validate(changes)) is live


def test_the_view_shows_every_key_that_can_be_changed() -> None:
    view = live_view(SETTINGS)

    assert tuple(view) == LIVE_SECTIONS
    assert view["batcher"]["max_batch_size"] == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batcher": {"max_batch": 4}}, "optimization.batcher.max_batch: no such key; did you mean"),
        ({"batcher": {"max_batch_size": "4"}}, 'optimization.batcher.max_batch_size = "4": expected an integer'),
        ({"batcher": {"max_batch_size": 0}}, "at least 1"),
        ({"batcher": {"max_batch_size": 1}}, "min_batch_size (2) is above max_batch_size (1)"),
        ({"tuner": {"observation_window_seconds": 30}}, "(60) is above observation_window_seconds (30)"),
        (
            {"tuner": {"cache_max_memory_mb": 100}},
            "cache.max_memory_mb (4096) is above tuner.cache_max_memory_mb (100)",
        ),
        ({"batcher": {"enabled": False}}, "optimization.batcher.enabled cannot be changed while serving, since it"),
        ({"batcher": {"max_slots": 64}}, "the engine was opened with that many slots"),
        ({"onnx": {"threads": 2}}, "optimization.onnx.threads cannot be changed while serving (only batcher, cache"),
        ({"batcher": 4}, "optimization.batcher: expected a section with keys below it"),
        ({"batchers": {"max_batch_size": 4}}, "optimization.batchers: no such key"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    assert message in problems(changes)


def test_all_problems_are_told_together() -> None:
    told = problems({"batcher": {"max_batch_size": 0, "nonsense": 1}, "cache": {"max_memory_mb": -1}})

    assert told.startswith("3 invalid settings")


def test_of_many_problems_the_first_are_named_since_each_takes_time() -> None:
    told = problems({"batcher": {f"nonsense_{place}": 1 for place in range(5000)}})

    assert told.startswith("5 invalid settings")
    assert "nonsense_4: no such key; did you mean" in told
    assert "; 4995 more were not checked" in told
    assert "nonsense_5" not in told
