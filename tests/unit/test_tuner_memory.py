"""What the tuner keeps across restarts, and what it does not believe."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from muai_lab.settings.schema import BatcherSettings, OptimizationSettings, TunerSettings
from muai_lab.stack.online.knobs import Values
from muai_lab.stack.online.memory import TunerMemory

GOOD = Values(16, 25, 512)


def memory(directory: Path, model: str = "chat", engine: str = "pytorch", batch: int = 32, **tuner: Any) -> TunerMemory:
    settings = OptimizationSettings(
        batcher=BatcherSettings(max_batch_size=batch), tuner=TunerSettings(state_directory=str(directory), **tuner)
    )
    return TunerMemory(model, engine, settings)


def test_what_was_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    memory(tmp_path / "new").save(Values(8, 50, 0))
    memory(tmp_path / "new").save(GOOD)

    assert memory(tmp_path / "new").load() == GOOD
    assert len(list((tmp_path / "new").iterdir())) == 1  # nothing half-written is left


def test_nothing_was_kept_at_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert memory(tmp_path).load() is None
    assert not caplog.records


@pytest.mark.parametrize(
    "other",
    [{"model": "other"}, {"engine": "onnx"}, {"batch": 16}, {"tpot_target_ms": 20.0}, {"cache_max_memory_mb": 9000}],
)
def test_what_was_good_for_another_model_engine_or_configuration_is_not_taken_over(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    memory(tmp_path).save(GOOD)

    assert memory(tmp_path, **other).load() is None


def test_how_often_the_tuner_looks_does_not_matter(tmp_path: Path) -> None:
    memory(tmp_path).save(GOOD)

    assert memory(tmp_path, tuning_interval_seconds=5, enabled=True).load() == GOOD


def test_a_name_with_slashes_stays_in_the_directory(tmp_path: Path) -> None:
    kept = memory(tmp_path, model="org/../../chat")

    kept.save(GOOD)

    assert kept.path.parent == tmp_path
    assert kept.load() == GOOD


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"null",
        {"values": None},
        {"values": {"max_batch_size": 0, "batch_timeout_ms": 25, "max_memory_mb": 512}},
        {"values": {"max_batch_size": True, "batch_timeout_ms": 25, "max_memory_mb": 512}},
        {"values": {"max_batch_size": "16", "batch_timeout_ms": 25, "max_memory_mb": 512}},
        {"values": {"max_batch_size": 16}},
        {"format": 2},
        {"model": "other"},
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_with_a_warning(
    tmp_path: Path, content: bytes | dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    kept = memory(tmp_path)
    kept.save(GOOD)
    if isinstance(content, dict):
        content = json.dumps({**json.loads(kept.path.read_text()), **content}).encode()
    kept.path.write_bytes(content)

    assert kept.load() is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(kept.path) in record.message


def test_a_directory_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()

    memory(tmp_path / "file").save(GOOD)

    assert "cannot be kept" in caplog.text


def test_without_a_directory_it_is_the_user_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUAI_CACHE_DIR", str(tmp_path))

    assert TunerMemory("chat", "onnx", OptimizationSettings()).path.parent == tmp_path / "tuner"
