"""The device that a model runs on, its dtypes and its memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from muai_lab.errors import EngineError
from muai_lab.gpus import visible_gpus

NAME = "pytorch"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

_BUILT_FOR = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def choose_device(wanted: str) -> torch.device:
    """Choose the device; `auto` takes the first CUDA device that serves. Raises EngineError if there is none."""
    if wanted == "cpu":
        return torch.device("cpu")
    problem = cuda_problem()
    if problem is None:
        return torch.device("cuda", 0)
    if wanted == "auto":
        return torch.device("cpu")
    raise EngineError(
        NAME, f"device {wanted} was asked for, but PyTorch {problem}: set optimization.pytorch.device to auto or cpu"
    )


def unused_gpu(wanted: str, device: torch.device) -> str | None:
    """Return why `auto` took the CPU on a machine with a GPU; None if it did not. The user may expect the GPU."""
    if wanted != "auto" or device.type != "cpu":
        return None
    gpus = visible_gpus()
    return f"the {gpus[0].name} here is not used: PyTorch {cuda_problem()}" if gpus else None


def cuda_problem() -> str | None:
    """Return why this PyTorch cannot use a GPU here; None if it can. The text continues a sentence after its name."""
    if torch.cuda.is_available():
        capability, built = torch.cuda.get_device_capability(0), torch.cuda.get_arch_list()
        if torch.version.cuda is not None and not runs_on(capability, built):
            version, there = ".".join(map(str, capability)), ", ".join(built)
            name = torch.cuda.get_device_name(0)
            return f"has no kernels for {name} (compute capability {version}, built for {there})"
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return "is built without CUDA"
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return f"sees no CUDA device (CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r})"
    gpus = visible_gpus()
    if gpus:
        return f"does not start CUDA {torch.version.cuda} with driver {gpus[0].driver} of {gpus[0].name}"
    return "sees no CUDA device"


def runs_on(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """True if a build has kernels for a GPU. built: from `torch.cuda.get_arch_list`, `sm_90` or `compute_120`.

    Machine code runs within its major version, from its minor version on (`a`: on that version only). PTX is compiled
    for every later GPU. Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#application-compatibility
    """
    found = [match.groups() for match in map(_BUILT_FOR.fullmatch, built) if match]
    if not found:
        return True  # the build does not say
    for kind, major, minor, suffix in found:
        target = (int(major), int(minor))
        if suffix == "a":
            fits = capability == target
        elif kind == "compute" and not suffix:
            fits = capability >= target
        else:
            fits = capability[0] == target[0] and capability[1] >= target[1]
        if fits:
            return True
    return False


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Choose the dtype; `auto`: fp32 on a CPU, bf16 on a GPU that has it, else fp16.

    Raises EngineError if the device lacks it.
    """
    if wanted == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if has_bf16() else torch.float16
    dtype = DTYPES[wanted]
    if dtype is torch.float16 and device.type == "cpu":
        raise EngineError(NAME, "fp16 does not run on a CPU: set optimization.pytorch.dtype to auto, bf16 or fp32")
    if dtype is torch.bfloat16 and device.type == "cuda" and not has_bf16():
        raise EngineError(NAME, "this GPU has no bf16: set optimization.pytorch.dtype to auto, fp16 or fp32")
    return dtype


def has_bf16() -> bool:
    """True if the first GPU computes in bf16 itself (compute capability 8.0 and later)."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@contextmanager
def device_failures(model: str, engine: str = NAME) -> Iterator[None]:
    """Turn errors of a GPU while a model is loaded into an EngineError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(
            engine,
            f"{model} does not fit into the memory of the GPU ({_first_line(error)}): free it of other programs, "
            "choose another GPU with CUDA_VISIBLE_DEVICES, or a smaller dtype",
        ) from error
    except torch.AcceleratorError as error:
        raise EngineError(
            engine, f"the GPU fails while {model} is loaded: {_first_line(error)}. Look at it with nvidia-smi"
        ) from error


def memory_warning(kv_bytes: int, cache_bytes: int, free_bytes: float) -> str | None:
    """Return a warning if keys and values of full slots and the prefix cache do not fit beside the weights."""
    if kv_bytes + cache_bytes <= free_bytes:
        return None
    needs = f"{kv_bytes / 2**30:.1f} GiB for keys and values"
    if cache_bytes:
        needs += f" and {cache_bytes / 2**30:.1f} GiB for the prefix cache"
    return (
        f"full slots would need {needs}, and {free_bytes / 2**30:.1f} GiB of GPU memory are free: lower "
        "optimization.batcher.max_batch_size, optimization.pytorch.max_model_len or optimization.cache.max_memory_mb"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
