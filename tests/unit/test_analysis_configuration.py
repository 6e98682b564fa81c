"""Settings as people see them: no secret, and the changed ones apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muai_lab.analysis import load_run
from muai_lab.analysis.configuration import HIDDEN, entries, redacted, short_names, shown
from muai_lab.analysis.origins import read_origins
from tests.unit.synthetic_run import record, write_run

ROWS = [record(0, chunks=[0.1, 0.2])]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("monitoring.anomaly.webhook_url", "https://hooks/x", HIDDEN),
        ("monitoring.anomaly.webhook_url", None, None),
        ("a.api_key", "abc", HIDDEN),
        ("a.access_token", "abc", HIDDEN),
        ("target.api_key_env", "OPENAI_API_KEY", "OPENAI_API_KEY"),
        ("target.api_key_env", "abc123", HIDDEN),
        ("workload.prompt_tokens", 7, 7),
        ("arrival.rate", 8.0, 8.0),
        ("target.url", "http://me:pw@host:8000/v1?key=1", "http://host:8000/v1"),
        ("x.headers", ["Authorization: Bearer abc.def"], [f"Authorization: Bearer {HIDDEN}"]),
        ("x.extra", {"password": "pw", "port": 1}, {"password": HIDDEN, "port": 1}),
    ],
)
def test_what_may_be_shown_of_a_setting(key: str, value: Any, expected: Any) -> None:
    assert shown(key, value) == expected


@pytest.mark.parametrize(
    "text", ["bad key sk-abcdefgh1234", "Bearer s3cr3tabc was refused", "api_key=s3cr3tabc", "https://u:s3cr3tabc@h/x"]
)
def test_texts_lose_what_looks_like_a_secret(text: str) -> None:
    assert "s3cr3tabc" not in redacted(text)
    assert "abcdefgh1234" not in redacted(text)


def test_ordinary_texts_stay_as_they_are() -> None:
    text = "HTTP 500: 12 tokens, batch of 8; see http://host:8000/v1/models"

    assert redacted(text) == text


def test_a_setting_is_changed_when_it_differs_from_the_default(tmp_path: Path) -> None:
    found = {entry.key: entry for entry in entries(load_run(write_run(tmp_path, ROWS)))}

    assert found["optimization.batcher.max_batch_size"].changed
    assert found["optimization.batcher.max_batch_size"].default == 32
    assert not found["optimization.batcher.batch_timeout_ms"].changed


def test_a_secret_that_was_left_out_of_the_record_counts_as_set(tmp_path: Path) -> None:
    origin = "a secret, left out; MUAI_MON_ANOMALY_WEBHOOK_URL brings it back"
    config = {"monitoring": {"anomaly": {"webhook_url": None}}}
    run = load_run(write_run(tmp_path, ROWS, config=config, origins={"monitoring.anomaly.webhook_url": origin}))

    found = {entry.key: entry for entry in entries(run)}["monitoring.anomaly.webhook_url"]

    assert (found.value, found.changed) == (HIDDEN, True)


def test_origins_stand_behind_the_values() -> None:
    text = """\
# file: lab.yaml
seed: 3  # override
target:
  url: "http://host/#part"  # lab.yaml:4
  model: null
optimization:
  engine_preference: [onnx, pytorch]  # engine=onnx
  # commented: 1  # default
  models: {a: b}  # MUAI_OPT_MODELS
"""
    assert read_origins(text) == {
        "seed": "override",
        "target.url": "lab.yaml:4",
        "optimization.engine_preference": "engine=onnx",
        "optimization.models": "MUAI_OPT_MODELS",
    }


def test_names_are_as_short_as_they_can_be() -> None:
    keys = ["a.batcher.enabled", "a.cache.enabled", "a.cache.max_memory_mb"]

    assert list(short_names(keys).values()) == ["batcher.enabled", "cache.enabled", "max_memory_mb"]
