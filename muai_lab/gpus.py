"""The NVIDIA GPUs that this process may use, without importing torch and without starting CUDA.

NVML (nvidia-ml-py) and nvidia-smi list all GPUs of the machine; CUDA shows a process only those that
`CUDA_VISIBLE_DEVICES` names. Other people's GPUs belong in no count, metric or manifest of ours.
Source of the rules: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SMI_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or a part of one (MIG).

    id: the driver's number of it, or the identifier of a part. memory_bytes: None if the driver does not say, as of
    GPUs that share the machine's memory. driver: version of the driver.
    """

    id: str
    name: str
    memory_bytes: int | None
    driver: str | None


def visible_gpus() -> list[Gpu]:
    """The GPUs that CUDA would show this process, in CUDA's order; empty without a driver that answers.

    Asks NVML; without nvidia-ml-py nvidia-smi, then the driver's own files. These two know no parts of GPUs.
    """
    try:
        import pynvml
    except ImportError:
        return _from_smi() or _from_driver_files()
    with _opened(pynvml) as open_:
        if not open_:
            return []
        found = []
        for gpu_id, handle in visible_handles(pynvml):
            try:
                name, driver = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlSystemGetDriverVersion()
            except pynvml.NVMLError:
                continue  # it fell off the bus
            found.append(Gpu(gpu_id, _text(name), _total_bytes(pynvml, handle), _text(driver)))
        return found


def memory_reader() -> Callable[[], Sequence[tuple[str, int]]] | None:
    """A function that reads (id, used bytes) of each visible GPU; None without a GPU or without nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None  # no driver
    handles = visible_handles(pynvml)
    if not handles:
        return None

    def read() -> list[tuple[str, int]]:
        used: list[tuple[str, int]] = []
        for gpu_id, handle in handles:
            try:
                used.append((gpu_id, int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)))
            except pynvml.NVMLError:
                continue  # a device that fell off the bus has no sample
        return used

    return read


def visible_handles(nvml: Any) -> list[tuple[str, Any]]:
    """Id and NVML handle of each visible GPU. nvml: the module, initialised.

    A number counts in the order of the bus, as PyTorch takes it too; CUDA's own order is another one only where GPUs
    differ and CUDA_DEVICE_ORDER is not PCI_BUS_ID.
    """
    try:
        count = int(nvml.nvmlDeviceGetCount())
    except nvml.NVMLError:
        return []
    handles: dict[str, Any] = {}
    identifiers: dict[str, str] = {}
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            identifiers[_text(nvml.nvmlDeviceGetUUID(handle))] = str(index)
        except nvml.NVMLError:
            continue
        handles[str(index)] = handle

    def part(name: str) -> Any | None:
        """Handle of a part of a GPU."""
        try:
            return nvml.nvmlDeviceGetHandleByUUID(name)
        except nvml.NVMLError:
            return None

    visible: list[tuple[str, Any]] = []
    for name in visible_names(list(handles), identifiers):
        handle = handles[name] if name in handles else part(name)
        if handle is None:
            break  # CUDA ignores all that follows an invalid name
        visible.append((name, handle))
    return visible


def visible_names(numbers: Sequence[str], identifiers: dict[str, str]) -> list[str]:
    """Numbers, or identifiers of parts of GPUs (`MIG-…`), that `CUDA_VISIBLE_DEVICES` leaves of all GPUs.

    numbers: of all GPUs, in order. identifiers: `GPU-…` to number; a beginning that is unambiguous will do.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(numbers)
    names: list[str] = []
    for text in (part.strip() for part in chosen.split(",")):
        if text.startswith("MIG-"):
            name: str | None = text
        elif text.startswith("GPU-"):
            matching = [number for identifier, number in identifiers.items() if identifier.startswith(text)]
            name = matching[0] if len(matching) == 1 else None
        else:
            number = str(int(text)) if text.isascii() and text.isdigit() else None
            name = number if number in numbers else None
        if name is None:
            break  # the first invalid name hides all that follow
        if name in names:
            return []  # a GPU twice: CUDA shows none
        names.append(name)
    return names


@contextmanager
def _opened(nvml: Any) -> Iterator[bool]:
    """NVML initialised for a while; False where no driver answers."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        nvml.nvmlShutdown()


def _total_bytes(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:
        return None


def _from_smi() -> list[Gpu]:
    query = "index,uuid,name,memory.total,driver_version"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_SMI_TIMEOUT_S,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    gpus: dict[str, Gpu] = {}
    identifiers: dict[str, str] = {}
    for line in answer.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 5:
            number, identifier, name, memory, driver = fields
            gpus[number] = Gpu(number, name, int(memory) * 2**20 if memory.isdigit() else None, driver)
            identifiers[identifier] = number
    return [gpus[name] for name in visible_names(list(gpus), identifiers) if name in gpus]


def _from_driver_files(root: Path = Path("/proc/driver/nvidia")) -> list[Gpu]:
    """Names and number of GPUs as the kernel's driver lists them, in the order of the bus."""
    gpus: dict[str, Gpu] = {}
    identifiers: dict[str, str] = {}
    for number, file in enumerate(sorted(root.glob("gpus/*/information"))):
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        gpus[str(number)] = Gpu(str(number), facts.get("Model", "NVIDIA GPU"), None, None)
        identifiers[facts.get("GPU UUID", "")] = str(number)
    return [gpus[name] for name in visible_names(list(gpus), identifiers) if name in gpus]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
