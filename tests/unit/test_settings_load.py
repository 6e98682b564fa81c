"""How the layers become one tree."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.errors import EngineError, Overloaded, SettingsError
from muai_lab.settings.catalogue import Key, keys_by_path
from muai_lab.settings.origin import Origin
from muai_lab.settings.resolve import flatten, load_settings
from tests.unit.environment_text import format_text

BATCH_SIZE = "optimization.batcher.max_batch_size"
SECRET = "https://hooks.example/T0/SESAME"


def write(folder: Path, text: str) -> Path:
    file = folder / "my.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def problems_of(*args: object, **kwargs: object) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_settings(*args, **kwargs)  # type: ignore[arg-type]
    return caught.value.problems


def test_override_beats_choice_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = write(tmp_path, "optimization:\n  batcher:\n    max_batch_size: 2\n")
    environ = {"MUAI_OPT_BATCHER_MAX_SIZE": "3"}
    choices = [flatten({BATCH_SIZE: 4}, Origin("group", "batcher=four"))]
    overrides = {BATCH_SIZE: 5}

    def resolve(layers: int) -> tuple[int, str]:
        resolved = load_settings(
            file if layers > 0 else None,
            environ if layers > 1 else {},
            overrides if layers > 3 else {},
            choices=choices if layers > 2 else (),
        )
        return resolved.settings.optimization.batcher.max_batch_size, str(resolved.origin(BATCH_SIZE))

    assert [resolve(layers) for layers in range(5)] == [
        (32, "default"),
        (2, f"{file}:3"),
        (3, "MUAI_OPT_BATCHER_MAX_SIZE"),
        (4, "batcher=four"),
        (5, "override"),
    ]


def test_what_was_set_is_known_to_the_models_too() -> None:
    settings = load_settings(environ={"MUAI_OPT_CACHE_MAX_MEMORY": "4096"}).settings

    assert "max_memory_mb" in settings.optimization.cache.model_fields_set
    assert "max_memory_mb" not in load_settings(environ={}).settings.optimization.cache.model_fields_set


def test_all_problems_of_one_load_come_together(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "optimization:\n  batcher:\n    max_batch_size: 0\n    min_batch: 2\n  cache: {eviction_policy: lfu}\n"
        "monitoring:\n  server: {health_check_path: /same, readiness_check_path: /same}\n",
    )
    problems = problems_of(
        file,
        {"MUAI_OPT_TUNER_ENABLE": "1", "MUAI_MON_SERVER_PORT": "70000"},
        {"arrival.rate": -1, "batcher.enabled": True, "target.kind": "endpoint"},
    )

    for part in (
        f"{BATCH_SIZE} = 0 ({file}:3): expected an integer, at least 1",
        f"optimization.batcher.min_batch ({file}:4): no such key",
        f'eviction_policy = "lfu" ({file}:5): expected one of lru, fifo',
        "are both /same",
        "MUAI_OPT_TUNER_ENABLE: no such environment variable",
        "monitoring.server.port = 70000 (MUAI_MON_SERVER_PORT): expected an integer from 0 to 65535",
        "arrival.rate = -1 (override): expected a number, above 0",
        "batcher.enabled (override): no such key; did you mean optimization.batcher.enabled",
        "the target endpoint needs target.url",
    ):
        assert [problem for problem in problems if part in problem], part
    assert len(problems) == 9


def test_values_that_do_not_go_together_are_named_with_their_origins(tmp_path: Path) -> None:
    file = write(tmp_path, "optimization:\n  batcher:\n    min_batch_size: 8\n")

    (problem,) = problems_of(file, {"MUAI_OPT_BATCHER_MAX_SIZE": "4"})

    assert problem == (
        "optimization.batcher: min_batch_size (8) is above max_batch_size (4): lower the one or raise the other "
        f"(min_batch_size: {file}:3, max_batch_size: MUAI_OPT_BATCHER_MAX_SIZE)"
    )


def test_a_check_across_keys_stays_silent_about_keys_that_are_wrong_by_themselves() -> None:
    problems = problems_of(environ={"MUAI_OPT_BATCHER_MAX_SIZE": "-4", "MUAI_OPT_BATCHER_MIN_BATCH_SIZE": "64"})

    assert len(problems) == 1


def test_an_invalid_value_is_reported_even_where_a_higher_layer_hides_it(tmp_path: Path) -> None:
    file = write(tmp_path, "optimization: {batcher: {max_batch_size: many}}\n")

    (problem,) = problems_of(file, {"MUAI_OPT_BATCHER_MAX_SIZE": "4"})

    assert '= "many"' in problem


@pytest.mark.parametrize(
    "environ",
    [
        {"MUAI_MON_ANOMALY_WEBHOOK_URL": f"ftp://{SECRET}"},
        {"MUAI_MON_ANOMALY_ALERTMANAGER_URL": f"x{SECRET} "},
        {"MUAI_MON_TRACING_ENDPOINT": "http://user:SESAME@collector:4317"},
    ],
)
def test_secrets_never_appear_in_error_texts(environ: dict[str, str]) -> None:
    (problem,) = problems_of(environ=environ)

    assert "SESAME" not in problem
    assert next(iter(environ)) in problem


def test_secrets_never_appear_in_error_texts_of_a_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "monitoring:\n  anomaly:\n    webhook_url: [SESAME]\n    webhook: SESAME\n    alertmanager_url: !!int SESAME\n",
    )

    problems = problems_of(
        file, {}, {"target.kind": "endpoint", "target.url": "http://h", "target.api_key_env": "SESAME!"}
    )

    assert len(problems) == 4
    assert not any("SESAME" in problem for problem in problems)


def test_secrets_do_not_appear_when_settings_are_printed() -> None:
    settings = load_settings(environ={"MUAI_MON_ANOMALY_WEBHOOK_URL": SECRET}).settings

    assert "SESAME" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert settings.monitoring.anomaly.webhook_url is not None
    assert settings.monitoring.anomaly.webhook_url.get_secret_value() == SECRET


def test_overriding_a_section_sets_the_keys_in_it() -> None:
    resolved = load_settings(
        environ={}, overrides={"optimization.batcher": {"max_batch_size": 4}, "slo": {"ttft_ms": 200}}
    )

    assert resolved.settings.optimization.batcher.max_batch_size == 4
    assert resolved.settings.slo.ttft_ms == 200


def test_entries_of_models_come_together_from_all_layers(tmp_path: Path) -> None:
    file = write(tmp_path, "optimization: {models: {a: file, b: file}}\n")

    resolved = load_settings(file, {"MUAI_OPT_MODELS": "b=variable,c=variable"}, {"optimization.models.c": "override"})

    assert resolved.settings.optimization.models == {"a": "file", "b": "variable", "c": "override"}
    assert str(resolved.origin("optimization.models")) == "override"


@pytest.mark.parametrize("key", [key for key in keys_by_path().values() if key.env_long and key.kind != "mapping"])
def test_every_key_of_the_file_can_be_set_by_variable_and_override(key: Key) -> None:
    assert key.env_long is not None
    value = key.default if key.default is not None or not key.secret else "http://localhost:1"

    by_variable = load_settings(environ={key.env_long: format_text(value)})
    by_override = load_settings(environ={}, overrides={key.path: value})

    assert str(by_variable.origin(key.path)) == key.env_long
    assert str(by_override.origin(key.path)) == "override"
    assert by_variable.settings == by_override.settings


@given(st.dictionaries(st.sampled_from(["file", "variable", "override"]), st.integers(1, 99)))
def test_the_highest_layer_that_sets_a_key_gives_value_and_origin(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, int]
) -> None:
    file = tmp_path_factory.getbasetemp() / "layers.yaml"
    size = values.get("file")
    file.write_text(
        "" if size is None else f"optimization: {{batcher: {{max_batch_size: {size}}}}}\n", encoding="utf-8"
    )

    resolved = load_settings(
        file,
        {"MUAI_OPT_BATCHER_MAX_SIZE": str(values["variable"])} if "variable" in values else {},
        {BATCH_SIZE: values["override"]} if "override" in values else {},
    )

    highest = next((layer for layer in ("override", "variable", "file") if layer in values), "default")
    origins = {"file": f"{file}:1", "variable": "MUAI_OPT_BATCHER_MAX_SIZE"}
    assert resolved.settings.optimization.batcher.max_batch_size == values.get(highest, 32)
    assert str(resolved.origin(BATCH_SIZE)) == origins.get(highest, highest)


@pytest.mark.parametrize(
    "error", [SettingsError(["a", "b"]), EngineError("onnx", "gone"), Overloaded("full", retry_after_s=1)]
)
def test_errors_survive_the_way_from_another_process(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert (type(copy), str(copy), copy.__dict__) == (type(error), str(error), error.__dict__)
