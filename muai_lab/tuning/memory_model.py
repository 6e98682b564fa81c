"""The memory that a configuration needs, by calculation: a configuration that cannot fit is never started.

It is the sum of weights, the key/value tensors of every slot, and the budget of the prefix cache. The memory that
libraries need for themselves is not known beforehand; `tuning.memory_fraction` leaves room for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muai_lab.settings.schema import EngineName, OptimizationSettings
from muai_lab.stack.caching import cache_budget
from muai_lab.stack.limits import engine_slots
from muai_lab.tuning.problem import Rejection, Screen
from muai_lab.wording import size

_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}
_INT8_BYTES = 1.0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model. parameters: Numbers in the weights. kv_values: Key/value numbers of one position."""

    parameters: int
    kv_values: int
    max_positions: int

    @classmethod
    def read(cls, path: Path) -> ModelShape | None:
        """Return the shape of a checkpoint directory; None if its config.json does not have it."""
        try:
            config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        parameters = sum(_parameters(file) for file in path.glob("*.safetensors"))
        layers = config.get("num_hidden_layers") or config.get("num_layers")
        heads = config.get("num_attention_heads") or config.get("num_heads")
        width = config.get("hidden_size") or config.get("d_model")
        if not (parameters and layers and heads and width):
            return None
        head_dim = config.get("head_dim") or config.get("d_kv") or width // heads
        positions = config.get("max_position_embeddings") or config.get("n_positions") or 512
        kv_values = 2 * layers * (config.get("num_key_value_heads") or heads) * head_dim
        return cls(parameters, kv_values, positions)


def _parameters(file: Path) -> int:
    """The count of numbers in a safetensors file, by its header: its length (8 bytes, little endian), then JSON."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for length in tensor["shape"]:
                count *= length
            total += count
    return total


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that a configuration needs at most."""

    weights: float
    slots: float
    cache: float

    @property
    def total(self) -> float:
        return self.weights + self.slots + self.cache

    def __str__(self) -> str:
        parts = (("weights", self.weights), ("slots", self.slots), ("prefix cache", self.cache))
        return f"{size(self.total)} ({', '.join(f'{name} {size(part)}' for name, part in parts if part)})"


def memory_need(
    optimization: OptimizationSettings, engine: EngineName, shape: ModelShape, *, default_dtype: str
) -> MemoryNeed:
    """Return the memory that an engine needs for a model.

    vLLM keeps all key/value tensors, those of running sequences too, inside the cache's budget. On a GPU without one it
    takes its share of the memory, so only the weights count.

    Args:
        optimization: The configuration.
        engine: The engine.
        shape: Of the model.
        default_dtype: The data type that `auto` is on this device.
    """
    section = getattr(optimization, engine)
    dtype = default_dtype if section.dtype == "auto" else section.dtype
    width = _BYTES[dtype]
    int8 = engine == "onnx" and optimization.onnx.enable_quantization
    ranks = {"vllm": optimization.vllm.tensor_parallel_size, "deepspeed": optimization.deepspeed.tensor_parallel}
    parts = ranks.get(engine, 1)
    weights = shape.parameters * (_INT8_BYTES if int8 else width) / parts
    cache = float(cache_budget(optimization))
    if engine == "vllm":
        return MemoryNeed(weights, 0.0, cache if "max_memory_mb" in optimization.cache.model_fields_set else 0.0)
    positions = min(shape.max_positions, getattr(section, "max_model_len", None) or shape.max_positions)
    kept = engine_slots(optimization) * positions * shape.kv_values * width / parts
    return MemoryNeed(weights, kept, cache)


def memory_screen(
    engine: EngineName, shape: ModelShape | None, capacity_bytes: float, fraction: float, *, default_dtype: str
) -> Screen:
    """Return a screen for configurations that need more than `fraction` of the device's memory.

    It rejects nothing if the model's shape is not known.
    """

    def screen(optimization: OptimizationSettings) -> Rejection | None:
        if shape is None:
            return None
        need = memory_need(optimization, engine, shape, default_dtype=default_dtype)
        allowed = fraction * capacity_bytes
        if need.total <= allowed:
            return None
        reason = f"needs {need}, more than {fraction:.0%} of {size(capacity_bytes)}"
        return Rejection("memory", need.total / allowed - 1.0, reason)

    return screen


def capacity_of(hardware: Mapping[str, Any], *, on_gpu: bool) -> float:
    """Return the memory of the device that serves, bytes. hardware: As a run's manifest has it.

    It is infinite for an unknown GPU: no configuration can then be rejected beforehand.
    """
    if not on_gpu:
        return float(hardware["memory_bytes"])
    known = [gpu["memory_bytes"] for gpu in hardware.get("gpus") or [] if gpu["memory_bytes"]]
    return float(min(known)) if known else float("inf")
