"""Settings from environment variables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muai_lab.errors import SettingsError
from muai_lab.settings.catalogue import keys_by_path
from muai_lab.settings.environment import parse_text, variables
from muai_lab.settings.resolve import load_settings
from tests.unit.environment_text import format_text

BATCH_SIZE = keys_by_path()["optimization.batcher.max_batch_size"]
LATENCY = keys_by_path()["monitoring.anomaly.latency_threshold_ms"]
ENABLED = keys_by_path()["optimization.enabled"]
PRELOAD = keys_by_path()["monitoring.server.preload_models"]
MODELS = keys_by_path()["optimization.models"]

NAMES = st.text(st.characters(codec="utf-8", exclude_characters=",="), min_size=1).filter(
    lambda text: text == text.strip() and text.lower() != "null"
)


def problems_of(environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ=environ)
    return caught.value.problems


def test_every_file_key_has_its_systematic_name() -> None:
    names = variables()

    for path, key in keys_by_path().items():
        section, _, rest = path.partition(".")
        if section in ("optimization", "monitoring"):
            prefix = "MUAI_OPT_" if section == "optimization" else "MUAI_MON_"
            assert names[prefix + rest.replace(".", "_").upper()] is key


@pytest.mark.parametrize(
    ("short", "path"),
    [
        ("MUAI_OPT_VLLM_TENSOR_PARALLEL", "optimization.vllm.tensor_parallel_size"),
        ("MUAI_OPT_VLLM_GPU_MEMORY", "optimization.vllm.gpu_memory_utilization"),
        ("MUAI_OPT_BATCHER_MAX_SIZE", "optimization.batcher.max_batch_size"),
        ("MUAI_OPT_BATCHER_TIMEOUT", "optimization.batcher.batch_timeout_ms"),
        ("MUAI_OPT_CACHE_MAX_MEMORY", "optimization.cache.max_memory_mb"),
        ("MUAI_MON_ANOMALY_LATENCY_THRESHOLD", "monitoring.anomaly.latency_threshold_ms"),
    ],
)
def test_short_names_work_and_are_the_origin(short: str, path: str) -> None:
    resolved = load_settings(environ={short: "1"})

    assert str(resolved.origin(path)) == short


@pytest.mark.parametrize("word", ["true", "1", "yes", "on"])
@pytest.mark.parametrize("change", [str.lower, str.upper, str.title, lambda text: f" {text} "])
def test_words_for_true(word: str, change) -> None:
    assert parse_text(ENABLED, change(word)) is True


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "OFF", "No"])
def test_words_for_false(word: str) -> None:
    assert parse_text(ENABLED, word) is False


@given(st.integers())
def test_integers_come_back(number: int) -> None:
    assert parse_text(BATCH_SIZE, format_text(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back(number: float) -> None:
    assert parse_text(LATENCY, format_text(number)) == number


@given(st.lists(NAMES, unique=True).map(tuple))
def test_lists_come_back(names: tuple[str, ...]) -> None:
    assert parse_text(PRELOAD, format_text(names)) == names


@given(st.dictionaries(NAMES, NAMES))
def test_mappings_come_back(models: dict[str, str]) -> None:
    assert parse_text(MODELS, format_text(models)) == models


@given(st.text().filter(lambda text: text.strip().lower() not in ("null", "")))
def test_text_is_an_integer_only_when_it_is_written_as_one(text: str) -> None:
    value = parse_text(BATCH_SIZE, text)

    assert isinstance(value, int) == (text.strip().lstrip("+-").isdigit() and text.strip().isascii() and value != text)


@pytest.mark.parametrize("text", ["", "null", "NULL", " "])
def test_null_is_written_null_or_empty(text: str) -> None:
    resolved = load_settings(environ={"MUAI_OPT_VLLM_MAX_MODEL_LEN": text})

    assert resolved.settings.optimization.vllm.max_model_len is None
    assert str(resolved.origin("optimization.vllm.max_model_len")) == "MUAI_OPT_VLLM_MAX_MODEL_LEN"


def test_an_empty_list_is_written_as_nothing() -> None:
    resolved = load_settings(environ={"MUAI_MON_SERVER_PRELOAD_MODELS": ""})

    assert resolved.settings.monitoring.server.preload_models == ()


@pytest.mark.parametrize("text", ["1_0", "0x10", "1.0", "ten", "", "null", "٣", "nan"])
def test_what_is_no_integer_is_refused_by_name(text: str) -> None:
    (problem,) = problems_of({"MUAI_OPT_BATCHER_MAX_SIZE": text})

    assert "optimization.batcher.max_batch_size" in problem
    assert "MUAI_OPT_BATCHER_MAX_SIZE" in problem
    assert "at least 1" in problem


def test_an_unknown_variable_is_an_error_with_the_nearest_name() -> None:
    (problem,) = problems_of({"MUAI_OPT_BATCHER_MAXSIZE": "8", "MUAI_OTHER": "x", "PATH": "/bin"})

    assert problem.startswith("MUAI_OPT_BATCHER_MAXSIZE: ")
    assert "did you mean MUAI_OPT_BATCHER_MAX_SIZE" in problem


def test_long_and_short_name_may_agree() -> None:
    environ = {"MUAI_OPT_CACHE_MAX_MEMORY": "64", "MUAI_OPT_CACHE_MAX_MEMORY_MB": " 64"}

    assert load_settings(environ=environ).settings.optimization.cache.max_memory_mb == 64


def test_long_and_short_name_that_disagree_are_both_named() -> None:
    (problem,) = problems_of({"MUAI_OPT_CACHE_MAX_MEMORY": "64", "MUAI_OPT_CACHE_MAX_MEMORY_MB": "128"})

    assert "MUAI_OPT_CACHE_MAX_MEMORY " in f"{problem} "
    assert "MUAI_OPT_CACHE_MAX_MEMORY_MB" in problem
    assert "optimization.cache.max_memory_mb" in problem
