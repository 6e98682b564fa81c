"""Settings from YAML files: where they are looked for, what each key's line is, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from muai_lab.errors import SettingsError
from muai_lab.settings.resolve import Resolved, load_settings


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str | bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(text: str | bytes, name: str = "my.yaml") -> Resolved:
    return load_settings(write(name, text), {})


def problems_of(text: str | bytes, name: str = "my.yaml") -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(text, name)
    return caught.value.problems


def batch_size(size: int) -> str:
    return f"optimization: {{batcher: {{max_batch_size: {size}}}}}\n"


def test_without_any_file_there_are_defaults() -> None:
    resolved = load_settings(environ={})

    assert resolved.file is None
    assert resolved.origins == {}


def test_the_files_are_looked_for_in_order() -> None:
    write("config/system.yaml", f"orchestrator: {{workers: 3}}\n{batch_size(3)}")
    assert load_settings(environ={}).settings.optimization.batcher.max_batch_size == 3

    write("config/optimization.yaml", batch_size(2))
    assert load_settings(environ={}).settings.optimization.batcher.max_batch_size == 2

    write("mine.yaml", batch_size(1))
    assert load_settings("mine.yaml", {}).settings.optimization.batcher.max_batch_size == 1


def test_other_sections_belong_into_system_yaml_only() -> None:
    (problem,) = problems_of("monitorng: {enabled: false}\n")
    assert "monitorng (my.yaml:1)" in problem
    assert "did you mean monitoring?" in problem

    (problem,) = problems_of("orchestrator: {}\n")
    assert "valid are optimization and monitoring" in problem

    assert load("orchestrator: {a: 1}\n", "elsewhere/system.yaml").origins.keys() == {"config_file"}


def test_each_key_knows_its_line() -> None:
    resolved = load(
        "# a comment\noptimization:\n\n  batcher:\n    max_batch_size: 8\n  engine_preference:\n    - onnx\n"
    )

    assert str(resolved.origin("optimization.batcher.max_batch_size")) == "my.yaml:5"
    assert str(resolved.origin("optimization.engine_preference")) == "my.yaml:7"
    assert str(resolved.origin("optimization.batcher.enabled")) == "default"


@pytest.mark.parametrize(
    "text", ["", "# only a comment\n", "---\n", "optimization:\n", "optimization:\n  batcher:\nmonitoring: null\n"]
)
def test_empty_files_and_sections_set_nothing(text: str) -> None:
    assert load(text).origins.keys() == {"config_file"}


def test_anchors_and_merge_keys_are_followed() -> None:
    resolved = load(
        "optimization:\n"
        "  pytorch: &half\n    dtype: bf16\n"
        "  vllm:\n    <<: *half\n    swap_space: 0\n"
        "  onnx: {enabled: &off false}\n  deepspeed: {enabled: *off}\n"
    ).settings.optimization

    assert (resolved.vllm.dtype, resolved.vllm.swap_space) == ("bf16", 0)
    assert resolved.deepspeed.enabled is False


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert (
        load("monitoring: {anomaly: {latency_threshold_ms: 2e3}}").settings.monitoring.anomaly.latency_threshold_ms
        == 2000
    )


def test_models_are_entries_of_their_own() -> None:
    resolved = load("optimization:\n  models:\n    qwen_chat: /models/qwen\n    Qwen2.5-0.5B: Qwen/Qwen2.5-0.5B\n")

    assert resolved.settings.optimization.models == {"qwen_chat": "/models/qwen", "Qwen2.5-0.5B": "Qwen/Qwen2.5-0.5B"}
    assert str(resolved.origin("optimization.models.Qwen2.5-0.5B")) == "my.yaml:4"
    assert resolved.origin("optimization.models").layer == "file"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("optimization:\n  batcher: [1, 2\n", "line 3, column 1"),
        ("optimization:\n\tbatcher: 1\n", "line 2, column 1"),
        ("optimization: *nowhere\n", "line 1, column 15"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
        ("optimization: {models: {a: !secret x}}\n", "line 1, column 28"),
        (b"optimization:\n  models: {a: \xff}\n", "line 2, column 15"),
        ("optimization:\n  models: {a: \x07}\n", "line 2, column 15"),
    ],
)
def test_invalid_yaml_is_named_with_line_and_column(text: str | bytes, place: str) -> None:
    (problem,) = problems_of(text)

    assert problem.startswith(f"my.yaml, {place}: not valid YAML: ")


def test_absurdly_nested_yaml_is_refused_like_any_other() -> None:
    (problem,) = problems_of("[" * 5000)

    assert "nested too deeply" in problem


def test_a_key_given_twice_is_an_error_that_names_both_lines() -> None:
    (problem,) = problems_of("optimization:\n  batcher:\n    enabled: true\n    enabled: false\n")

    assert "enabled (my.yaml:4)" in problem
    assert "first in line 3" in problem


def test_an_unknown_key_is_named_with_the_nearest() -> None:
    (problem,) = problems_of("optimization:\n  batcher:\n    max_batchsize: 8\n")

    assert problem == (
        "optimization.batcher.max_batchsize (my.yaml:3): no such key; did you mean optimization.batcher.max_batch_size "
        "or optimization.batcher.min_batch_size?"
    )


def test_an_unknown_section_is_named_with_its_line_and_the_valid_names() -> None:
    (problem,) = problems_of("optimization:\n  zzz:\n    a: 1\n")

    assert problem.startswith("optimization.zzz (my.yaml:2): no such key; valid are enabled, engine_preference,")


def test_a_dot_in_a_key_does_not_lead_into_a_section() -> None:
    (problem,) = problems_of("optimization:\n  batcher.max_batch_size: 8\n")

    assert "no such key" in problem


@pytest.mark.parametrize("text", ["optimization: 5", "optimization: [a]", "optimization: {batcher: true}"])
def test_a_value_in_place_of_a_section_is_an_error(text: str) -> None:
    (problem,) = problems_of(text)

    assert "expected a section" in problem


@pytest.mark.parametrize("text", ["[]", "5", "just text"])
def test_a_file_that_is_no_mapping_is_an_error(text: str) -> None:
    (problem,) = problems_of(text)

    assert "expected the sections optimization and monitoring" in problem


@pytest.mark.parametrize("value", ['"8"', "8.0", "true", "eight", "null", "[8]", "{a: 8}", "0"])
def test_values_of_the_wrong_type_are_never_taken_for_right_ones(value: str) -> None:
    (problem,) = problems_of(f"optimization:\n  batcher:\n    max_batch_size: {value}\n")

    assert problem.startswith("optimization.batcher.max_batch_size = ")
    assert problem.endswith("(my.yaml:3): expected an integer, at least 1 (sequences)")


def test_a_missing_file_and_a_folder_are_named() -> None:
    with pytest.raises(SettingsError, match=r"configuration file nowhere\.yaml does not exist"):
        load_settings("nowhere.yaml", {})
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(Path(), {})
