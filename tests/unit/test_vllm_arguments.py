"""What each setting becomes as an argument of vLLM, and what is said where it cannot have an effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from muai_lab.engines.vllm.arguments import EngineArguments, advice, engine_arguments
from muai_lab.errors import EngineError
from muai_lab.models.registry import ModelSource
from muai_lab.settings.schema import OptimizationSettings

CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "dtype": "float32",
    "max_position_embeddings": 4096,
    "vocab_size": 1000,
    "eos_token_id": 7,
}
MIB = 1 << 20


@pytest.fixture
def model(tmp_path: Path) -> ModelSource:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return ModelSource("mine", tmp_path, None, "local", None, False, "qwen2")


def mapped(
    model: ModelSource, settings: dict[str, Any] | None = None, *, cpu: bool, slots: int = 32
) -> EngineArguments:
    return engine_arguments(model, OptimizationSettings.model_validate(settings or {}), slots=slots, cpu=cpu)


def test_the_defaults_on_a_cpu(model: ModelSource) -> None:
    arguments = mapped(model, cpu=True)
    assert arguments.keywords == {
        "model": str(model.path),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": "float32",
        "max_model_len": None,
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.9,
        "kv_cache_memory_bytes": 4096 * MIB,
        "kv_offloading_size": None,
        "enable_prefix_caching": True,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 32 + 512,
        "enforce_eager": True,
        "use_tqdm_on_load": False,
    }
    assert arguments.warnings == ()
    assert arguments.vocab_size == 1000


def test_the_defaults_on_a_gpu_leave_the_memory_to_gpu_memory_utilization(model: ModelSource) -> None:
    arguments = mapped(model, cpu=False)
    assert arguments.keywords["kv_cache_memory_bytes"] is None
    assert arguments.keywords["kv_offloading_size"] == 4
    assert arguments.keywords["enforce_eager"] is False
    assert arguments.keywords["dtype"] == "auto"
    assert arguments.effective["gpu_memory_utilization"] == 0.9
    assert arguments.effective["kv_cache_mb"] is None


def test_every_key_reaches_the_engine(model: ModelSource) -> None:
    settings = {
        "vllm": {
            "tensor_parallel_size": 2,
            "dtype": "bf16",
            "max_model_len": 2048,
            "gpu_memory_utilization": 0.5,
            "swap_space": 8,
            "enforce_eager": True,
        },
        "cache": {"enabled": False, "max_memory_mb": 1024},
    }
    keywords = mapped(model, settings, cpu=False, slots=5).keywords
    assert keywords["tensor_parallel_size"] == 2
    assert keywords["dtype"] == "bfloat16"
    assert keywords["max_model_len"] == 2048
    assert keywords["gpu_memory_utilization"] == 0.5
    assert keywords["kv_offloading_size"] == 8
    assert keywords["enforce_eager"] is True
    assert keywords["enable_prefix_caching"] is False
    assert keywords["kv_cache_memory_bytes"] == 1024 * MIB
    assert keywords["max_num_seqs"] == 5


def test_a_cache_budget_set_to_its_default_still_counts_as_set(model: ModelSource) -> None:
    settings = {"cache": {"max_memory_mb": 4096}}
    assert mapped(model, settings, cpu=False).keywords["kv_cache_memory_bytes"] == 4096 * MIB


@pytest.mark.parametrize(("cpu", "kv_bytes"), [(True, 4096 * MIB), (False, None)])
def test_no_memory_for_the_cache_turns_it_off_but_leaves_room_for_running_sequences(
    model: ModelSource, cpu: bool, kv_bytes: int | None
) -> None:
    arguments = mapped(model, {"cache": {"max_memory_mb": 0}}, cpu=cpu)
    assert arguments.keywords["enable_prefix_caching"] is False
    assert arguments.keywords["kv_cache_memory_bytes"] == kv_bytes
    assert arguments.effective["eviction_policy"] is None


def test_no_swap_space_means_no_offloading(model: ModelSource) -> None:
    assert mapped(model, {"vllm": {"swap_space": 0}}, cpu=False).keywords["kv_offloading_size"] is None


@pytest.mark.parametrize(
    ("checkpoint", "dtype"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "bfloat16"), (None, "float32")],
)
def test_auto_on_a_cpu_keeps_fp32_and_takes_bf16_for_16_bits(
    model: ModelSource, checkpoint: str | None, dtype: str
) -> None:
    assert model.path is not None
    (model.path / "config.json").write_text(json.dumps(CONFIG | {"dtype": checkpoint}))
    assert mapped(model, cpu=True).keywords["dtype"] == dtype


def test_the_dtype_of_a_checkpoint_is_found_under_its_older_name_and_inside_text_config(model: ModelSource) -> None:
    assert model.path is not None
    text = {"torch_dtype": "bfloat16", "max_position_embeddings": 64, "vocab_size": 10}
    (model.path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    arguments = mapped(model, cpu=True)
    assert arguments.keywords["dtype"] == "bfloat16"
    assert (arguments.vocab_size, arguments.eos_token_ids) == (10, ())


def test_fifo_is_said_not_to_be_there_and_lru_is_recorded(model: ModelSource) -> None:
    arguments = mapped(model, {"cache": {"eviction_policy": "fifo"}}, cpu=True)
    assert arguments.effective["eviction_policy"] == "lru"
    assert "fifo" in arguments.warnings[0]


def test_keys_of_a_gpu_that_are_set_on_a_cpu_are_said_to_have_no_effect(model: ModelSource) -> None:
    arguments = mapped(model, {"vllm": {"swap_space": 4, "gpu_memory_utilization": 0.5}}, cpu=True)
    assert [warning.split()[0] for warning in arguments.warnings] == [
        "optimization.vllm.swap_space",
        "optimization.vllm.gpu_memory_utilization",
    ]
    assert arguments.effective["kv_offloading_gib"] == 0


def test_more_positions_than_the_model_has_are_refused(model: ModelSource) -> None:
    with pytest.raises(EngineError, match=r"max_model_len is 5000, but the model has only 4096 positions"):
        mapped(model, {"vllm": {"max_model_len": 5000}}, cpu=True)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(None, (7,)), ({"eos_token_id": 9}, (9,)), ({"eos_token_id": [9, 11]}, (9, 11)), ({"temperature": 0.7}, (7,))],
)
def test_the_end_of_text_is_what_the_checkpoint_generates_with(
    model: ModelSource, generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    assert model.path is not None
    if generation is not None:
        (model.path / "generation_config.json").write_text(json.dumps(generation))
    assert mapped(model, cpu=True).eos_token_ids == expected


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_config_is_an_engine_error(model: ModelSource, content: str) -> None:
    assert model.path is not None
    (model.path / "config.json").write_text(content)
    with pytest.raises(EngineError, match=r"cannot read .*config\.json"):
        mapped(model, cpu=True)


def test_messages_of_vllm_get_the_names_of_our_keys() -> None:
    message = "ValueError: (0.03 GiB KV cache is needed, which is larger than the available KV cache memory (0.0 GiB)."
    assert "optimization.cache.max_memory_mb" in advice(message)
    assert advice("OSError: no such file") == "OSError: no such file"
