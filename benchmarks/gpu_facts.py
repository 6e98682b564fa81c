"""Facts about the device that `benchmarks.gpu` measures: names, versions, state, and the vendor's peaks."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from muai_lab.gpus import visible_gpus, visible_handles

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a part's table. value: None if it cannot be known here; note: why, or how it was made."""

    name: str
    value: float | str | None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class VendorPeak:
    """What the vendor's data sheet says.

    tflops: dense products in bf16 with fp32 sums, in fp16 for GPUs without bf16. tb_per_s: of the GPU's memory.
    """

    tflops: float
    tb_per_s: float
    source: str


# By the name that CUDA gives. Parts of a GPU (MIG) have names of their own and are in no data sheet. Data sheets that
# print figures with sparsity are halved.
_H100, _A100 = "NVIDIA H100 Tensor Core GPU data sheet", "NVIDIA A100 Tensor Core GPU data sheet"
VENDOR_PEAKS = {
    "NVIDIA B200": VendorPeak(2250, 8.0, "NVIDIA Blackwell architecture technical brief"),
    "NVIDIA H200": VendorPeak(989, 4.8, "NVIDIA H200 Tensor Core GPU data sheet"),
    "NVIDIA H200 NVL": VendorPeak(836, 4.8, "NVIDIA H200 Tensor Core GPU data sheet"),
    "NVIDIA GH200 480GB": VendorPeak(989, 4.0, "NVIDIA GH200 Grace Hopper Superchip data sheet"),
    "NVIDIA H100 80GB HBM3": VendorPeak(989, 3.35, _H100),
    "NVIDIA H100 NVL": VendorPeak(836, 3.9, _H100),
    "NVIDIA H100 PCIe": VendorPeak(756, 2.0, _H100),
    "NVIDIA A100-SXM4-80GB": VendorPeak(312, 2.039, _A100),
    "NVIDIA A100-SXM4-40GB": VendorPeak(312, 1.555, _A100),
    "NVIDIA A100 80GB PCIe": VendorPeak(312, 1.935, _A100),
    "NVIDIA A100-PCIE-40GB": VendorPeak(312, 1.555, _A100),
    "NVIDIA A30": VendorPeak(165, 0.933, "NVIDIA A30 Tensor Core GPU data sheet"),
    "NVIDIA A40": VendorPeak(150, 0.696, "NVIDIA A40 data sheet"),
    "NVIDIA A10": VendorPeak(125, 0.600, "NVIDIA A10 Tensor Core GPU data sheet"),
    "NVIDIA L40S": VendorPeak(362, 0.864, "NVIDIA L40S data sheet"),
    "NVIDIA L40": VendorPeak(181, 0.864, "NVIDIA L40 data sheet"),
    "NVIDIA L4": VendorPeak(121, 0.300, "NVIDIA L4 Tensor Core GPU data sheet"),
    "NVIDIA GeForce RTX 4090": VendorPeak(165, 1.008, "NVIDIA Ada GPU architecture whitepaper"),
    "NVIDIA GeForce RTX 3090": VendorPeak(71, 0.936, "NVIDIA Ampere GA102 GPU architecture whitepaper"),
    "Tesla V100-SXM2-32GB": VendorPeak(125, 0.900, "NVIDIA V100 Tensor Core GPU data sheet (fp16)"),
    "Tesla V100-SXM2-16GB": VendorPeak(125, 0.900, "NVIDIA V100 Tensor Core GPU data sheet (fp16)"),
    "Tesla T4": VendorPeak(65, 0.320, "NVIDIA T4 Tensor Core GPU data sheet (fp16)"),
}

_STATE = (  # nvidia-smi's name, ours, unit
    ("clocks.sm", "SM clock", "MHz"),
    ("clocks.max.sm", "SM clock, most", "MHz"),
    ("clocks.mem", "memory clock", "MHz"),
    ("power.draw", "power", "W"),
    ("power.limit", "power limit", "W"),
    ("temperature.gpu", "temperature", "°C"),
    ("pstate", "performance state", ""),
    ("clocks_throttle_reasons.active", "clocks held back by", ""),
    ("utilization.gpu", "kernels ran in this share of time", "%"),
    ("memory.used", "memory used, all programs", "MiB"),
)


def dtype_of(device: torch.device) -> torch.dtype:
    """bf16 wherever it runs; fp16 on a GPU without it."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def device_name(device: torch.device) -> str:
    """CUDA's name of the GPU, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def vendor_peak(device: torch.device) -> VendorPeak | None:
    """What the vendor promises of this device; None of one that the table does not have."""
    return VENDOR_PEAKS.get(device_name(device)) if device.type == "cuda" else None


def facts(device: torch.device) -> list[Row]:
    """Device, versions and state, before anything is measured."""
    rows = [Row("device", device_name(device)), *_versions(device)]
    if device.type != "cuda":
        return [*rows, Row("threads", torch.get_num_threads())]
    properties: Any = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    seen = visible_gpus()
    rows += [
        Row("driver", seen[0].driver if seen else None, note="" if seen else "neither NVML nor nvidia-smi answers"),
        Row("compute capability", f"{properties.major}.{properties.minor}"),
        Row("multiprocessors", properties.multi_processor_count),
        Row("memory", total / GIB, "GiB"),
        Row("memory free at the start", free / GIB, "GiB", "" if free > 0.9 * total else "other programs use this GPU"),
        Row("GPUs that this process sees", torch.cuda.device_count(), note="the first is measured"),
    ]
    peak = vendor_peak(device)
    if peak is None:
        return [
            *rows,
            Row("vendor's peaks", None, note="not in the table of benchmarks/gpu_facts.py: measured ones only"),
        ]
    return [
        *rows,
        Row("vendor's peak, dense products", peak.tflops, "TFLOP/s", peak.source),
        Row("vendor's peak, memory", peak.tb_per_s * 1000, "GB/s", peak.source),
    ]


def _versions(device: torch.device) -> list[Row]:
    rows = [Row("Python", platform.python_version()), Row("PyTorch", torch.__version__)]
    if device.type == "cuda":
        cudnn: Any = torch.backends.cudnn
        rows += [Row("CUDA of PyTorch", torch.version.cuda), Row("cuDNN", str(cudnn.version()))]
    for name in ("transformers", "numpy"):
        try:
            rows.append(Row(name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append(Row(name, None, note="not installed"))
    return rows


def state(device: torch.device, when: str) -> list[Row]:
    """Clocks, power, temperature and memory of the GPU at this moment; nothing on a CPU."""
    if device.type != "cuda":
        return []
    answer = _smi([name for name, _, _ in _STATE])
    if answer is None:
        return _nvml_state(when)
    return [Row(f"{label}, {when}", _number(text), unit) for (_, label, unit), text in zip(_STATE, answer, strict=True)]


def _smi(names: list[str]) -> list[str] | None:
    """What nvidia-smi says of the first visible GPU; None without it."""
    seen = visible_gpus()
    if not seen:
        return None
    command = ["nvidia-smi", f"--id={seen[0].id}", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    fields = [field.strip() for field in said.strip().splitlines()[0].split(",")] if said.strip() else []
    return fields if len(fields) == len(names) else None


def _nvml_state(when: str) -> list[Row]:
    """The same from NVML, as far as one needs it, where nvidia-smi is missing."""
    try:
        import pynvml
    except ImportError:
        return [Row(f"state, {when}", None, note="needs nvidia-smi, or pip install nvidia-ml-py")]
    try:
        pynvml.nvmlInit()
        (_, handle), *_ = visible_handles(pynvml)
        return [
            Row(f"SM clock, {when}", pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM), "MHz"),
            Row(f"power, {when}", pynvml.nvmlDeviceGetPowerUsage(handle) / 1000, "W"),
            Row(f"memory used, all programs, {when}", pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**20, "MiB"),
        ]
    except (pynvml.NVMLError, ValueError) as error:
        return [Row(f"state, {when}", None, note=f"NVML does not answer: {error}")]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
