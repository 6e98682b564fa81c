"""Whether DeepSpeed can serve, told from settings, metadata and the device alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from muai_lab.engines.deepspeed import probe
from muai_lab.models.registry import ModelSource
from muai_lab.settings.schema import DeepspeedSettings, OptimizationSettings


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's own variable for it, so that these tests say the same on a machine with a GPU."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def optimization(**deepspeed: object) -> OptimizationSettings:
    return OptimizationSettings.model_validate({"deepspeed": deepspeed})


def on_gpus(monkeypatch: pytest.MonkeyPatch, count: int, dtypes: tuple[str, ...] = ("fp16", "bf16", "fp32")) -> None:
    monkeypatch.setattr(probe, "_device", lambda: ("NVIDIA T4", count, dtypes))


def source(folder: Path, config: dict[str, object], *, encoder_decoder: bool = False) -> ModelSource:
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSource("mine", folder, None, "local", None, encoder_decoder, str(config["model_type"]))


def test_fp16_which_is_the_default_does_not_run_on_a_cpu_and_the_reason_says_what_to_set() -> None:
    found = probe.availability(OptimizationSettings())
    assert found.reason is not None
    assert "fp16 (the default) does not run on a CPU" in found.reason
    assert "optimization.deepspeed.dtype=fp32" in found.reason
    assert (found.device, found.dtypes) == ("cpu", ("fp32", "bf16"))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_fp32_and_bf16_run_on_a_cpu(dtype: str) -> None:
    found = probe.availability(optimization(dtype=dtype))
    assert found.available
    assert found.version == metadata.version("deepspeed")


def test_without_the_package_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_there)
    found = probe.availability(OptimizationSettings())
    assert found.reason == "DeepSpeed is not installed: pip install 'muai-lab[deepspeed]'"
    assert found.version is None


def test_metadata_left_behind_by_a_broken_removal_is_not_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "find_spec", lambda name: None)
    assert "not installed" in (probe.availability(optimization(dtype="fp32")).reason or "")


def test_pipeline_parallelism_is_refused_with_the_reason() -> None:
    found = probe.availability(optimization(dtype="fp32", pipeline_parallel=2))
    assert "pipeline_parallel is 2, but DeepSpeed inference has no pipeline parallelism" in (found.reason or "")


def test_more_ranks_than_gpus_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpus(monkeypatch, 2)
    assert probe.availability(optimization(tensor_parallel=2)).available
    reason = probe.availability(optimization(tensor_parallel=4)).reason
    assert reason is not None
    assert "tensor_parallel is 4, but there are 2 GPUs here" in reason


def test_on_a_cpu_a_rank_needs_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    reason = probe.availability(optimization(dtype="fp32", tensor_parallel=2)).reason
    assert reason is not None
    assert "tensor_parallel is 2, but there is 1 CPU core here" in reason


def test_a_gpu_without_bf16_names_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpus(monkeypatch, 1, ("fp16", "fp32"))
    reason = probe.availability(optimization(dtype="bf16")).reason
    assert reason is not None
    assert "dtype bf16 does not run on this GPU (NVIDIA T4)" in reason
    assert "(the default)" not in reason


def test_on_one_rank_any_decoder_and_t5_are_tried(tmp_path: Path) -> None:
    assert probe.supports(optimization(), source(tmp_path, {"model_type": "gpt2"})) is None
    assert probe.supports(optimization(), source(tmp_path, {"model_type": "t5"}, encoder_decoder=True)) is None


def test_other_encoder_decoders_are_refused(tmp_path: Path) -> None:
    reason = probe.supports(optimization(), source(tmp_path, {"model_type": "bart"}, encoder_decoder=True))
    assert reason is not None
    assert "'bart'" in reason


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gpt2"}, "cannot shard models of type 'gpt2'"),
        ({"model_type": "qwen2", "num_attention_heads": 6, "num_key_value_heads": 3}, "3 key/value heads"),
        ({"model_type": "gemma3", "text_config": {"num_key_value_heads": 1}}, "1 key/value heads"),
    ],
)
def test_what_cannot_be_shared_out_over_two_ranks_is_refused(
    tmp_path: Path, config: dict[str, object], expected: str
) -> None:
    reason = probe.supports(optimization(tensor_parallel=2), source(tmp_path, config))
    assert reason is not None
    assert expected in reason
    assert "optimization.deepspeed.tensor_parallel=1" in reason


@pytest.mark.parametrize(
    "config", [{"model_type": "qwen2", "num_key_value_heads": 2}, {"model_type": "opt", "num_attention_heads": 4}]
)
def test_heads_that_can_be_shared_out_evenly_are_served(tmp_path: Path, config: dict[str, object]) -> None:
    assert probe.supports(optimization(tensor_parallel=2), source(tmp_path, config)) is None


def test_a_config_that_cannot_be_read_is_left_to_loading(tmp_path: Path) -> None:
    model = source(tmp_path, {"model_type": "qwen2"})
    (tmp_path / "config.json").write_text("{")
    assert probe.supports(optimization(tensor_parallel=2), model) is None


def test_every_key_of_the_section_is_accounted_for() -> None:
    section = {f"optimization.deepspeed.{name}" for name in DeepspeedSettings.model_fields} - {
        "optimization.deepspeed.enabled"
    }
    assert section <= set(probe.KEYS)


def test_probing_imports_neither_deepspeed_nor_torch() -> None:
    code = """
import sys
from muai_lab.engines.deepspeed.probe import availability
from muai_lab.settings.schema import OptimizationSettings
availability(OptimizationSettings())
print(sorted({"torch", "deepspeed", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
