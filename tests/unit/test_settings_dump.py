"""Settings written down again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from muai_lab.settings.catalogue import Key, keys_by_path
from muai_lab.settings.dump import child_environment, dump_config_yaml, dump_optimization_yaml, secret_environment
from muai_lab.settings.environment import variables
from muai_lab.settings.resolve import load_settings

SECRET = "https://hooks.example/T0/SESAME"
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text == text.strip())
FREE_TEXT = ("monitoring.tracing.service_name", "monitoring.prometheus.host", "monitoring.server.host")


def values_for(key: Key) -> st.SearchStrategy[object]:
    bounds = key.range
    if key.path in FREE_TEXT:
        values: st.SearchStrategy[object] = TEXTS
    elif key.kind == "bool":
        values = st.booleans()
    elif key.kind == "int":
        lowest = int(bounds.ge if bounds.ge is not None else 0)
        values = st.integers(lowest, int(bounds.le) if bounds.le is not None else 10**12)
    elif key.kind == "float":
        lowest_number = bounds.ge if bounds.ge is not None else bounds.gt
        values = st.floats(
            lowest_number, bounds.le, exclude_min=bounds.gt is not None, allow_nan=False, allow_infinity=False
        )
    elif key.kind == "list":
        items = st.sampled_from(key.options) if key.options else TEXTS
        values = st.lists(items, unique=True, min_size=int(key.non_empty))
    elif key.kind == "mapping":
        values = st.dictionaries(TEXTS, TEXTS)
    elif key.options:
        values = st.sampled_from(key.options)
    else:
        values = st.just(key.default if key.default is not None else "http://localhost:1/x")
    return st.none() | values if key.nullable else values


FILE_KEYS = [key for key in keys_by_path().values() if key.env_long and key.name != "alert_destinations"]
DEFAULTS = {key.path: key.default for key in FILE_KEYS}
# The first may not exceed the second; a pair comes after those that may change its second.
ORDERED = (
    ("optimization.batcher.max_batch_size", "optimization.batcher.max_slots"),
    ("optimization.batcher.min_batch_size", "optimization.batcher.max_batch_size"),
    ("optimization.tuner.tuning_interval_seconds", "optimization.tuner.observation_window_seconds"),
    ("optimization.cache.max_memory_mb", "optimization.tuner.cache_max_memory_mb"),
)


def coherent(values: dict[str, object]) -> dict[str, object]:
    """The same values, changed where they would contradict each other."""
    for low, high in ORDERED:
        most = values.get(high, DEFAULTS[high])
        if most is not None and values.get(low, DEFAULTS[low]) > most:
            values[low] = most
    if values.get("monitoring.prometheus.port", 9090) == values.get("monitoring.server.port", 8000):
        values["monitoring.server.port"] = 0
    return values


OVERRIDES = st.fixed_dictionaries({}, optional={key.path: values_for(key) for key in FILE_KEYS}).map(coherent)


@given(OVERRIDES)
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
def test_a_written_file_loads_as_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, object]
) -> None:
    written = load_settings(environ={}, overrides=overrides).settings
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(dump_optimization_yaml(written), encoding="utf-8")

    read = load_settings(file, secret_environment(written)).settings

    assert read.optimization == written.optimization
    assert read.monitoring == written.monitoring


def test_the_file_has_the_specification_s_two_sections_and_every_key() -> None:
    data = yaml.safe_load(dump_optimization_yaml(load_settings(environ={}).settings))

    assert list(data) == ["optimization", "monitoring"]
    assert data["monitoring"]["server"]["port"] == 8000
    assert data["optimization"]["engine_preference"] == ["vllm", "deepspeed", "onnx", "pytorch"]


@pytest.mark.parametrize("text", ["1e3", "on", "null", "10:30", "007", "a: b # c", "…", "- x", "2024-01-01"])
def test_texts_that_look_like_something_else_stay_texts(text: str, tmp_path: Path) -> None:
    written = load_settings(environ={}, overrides={"monitoring.tracing.service_name": text}).settings
    file = tmp_path / "written.yaml"
    file.write_text(dump_optimization_yaml(written), encoding="utf-8")

    assert load_settings(file, {}).settings.monitoring.tracing.service_name == text


def test_a_cache_budget_that_nobody_set_is_not_set_by_writing_the_file(tmp_path: Path) -> None:
    file = tmp_path / "written.yaml"

    def written_by(environ: dict[str, str]) -> str:
        file.write_text(dump_optimization_yaml(load_settings(environ=environ).settings), encoding="utf-8")
        return load_settings(file, {}).origin("optimization.cache.max_memory_mb").layer

    assert written_by({}) == "default"
    assert written_by({"MUAI_OPT_CACHE_MAX_MEMORY": "4096"}) == "file"


def test_secrets_are_left_out_and_travel_by_environment() -> None:
    resolved = load_settings(
        environ={"MUAI_MON_ANOMALY_WEBHOOK_URL": SECRET, "MUAI_MON_ANOMALY_ALERT_DESTINATIONS": "webhook"}
    )

    for text in (dump_optimization_yaml(resolved.settings), dump_config_yaml(resolved)):
        assert "SESAME" not in text
        assert "webhook_url: null  # a secret, left out; MUAI_MON_ANOMALY_WEBHOOK_URL brings it back" in text
    assert secret_environment(resolved.settings) == {"MUAI_MON_ANOMALY_WEBHOOK_URL": SECRET}


def test_a_child_gets_the_secrets_but_no_variable_that_would_be_laid_over_its_file() -> None:
    environ = {"PATH": "/bin", "MUAI_OPT_BATCHER_MAX_SIZE": "4", "MUAI_MON_ANOMALY_WEBHOOK_URL": SECRET}
    resolved = load_settings(environ=environ)

    assert child_environment(resolved.settings, environ) == {"PATH": "/bin", "MUAI_MON_ANOMALY_WEBHOOK_URL": SECRET}


def test_the_record_of_a_run_names_the_origin_of_every_value() -> None:
    resolved = load_settings(environ={"MUAI_OPT_BATCHER_TIMEOUT": "5"}, overrides={"arrival.rate": 8})
    lines = dump_config_yaml(resolved).splitlines()

    assert "  rate: 8.0  # override" in lines
    assert "    batch_timeout_ms: 5  # MUAI_OPT_BATCHER_TIMEOUT" in lines
    assert "seed: 0  # default" in lines
    assert yaml.safe_load("\n".join(lines))["workload"]["prompt_tokens"] == {
        "distribution": "uniform",
        "low": 16,
        "high": 128,
    }


def test_all_variables_are_those_of_the_file_s_keys() -> None:
    assert {key.path for key in variables().values()} == {key.path for key in keys_by_path().values() if key.env_long}
