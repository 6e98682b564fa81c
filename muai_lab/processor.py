"""The processor that this process runs on: name, family, the instruction sets that libraries choose by, usable cores.

Libraries have other kernels for each instruction set. Speed depends on that choice, and sometimes outputs do. The name
alone does not tell: a virtual machine calls several generations `AMD EPYC`, and ARM's kernels name none at all.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_SYSCTL_TIMEOUT_S = 10

# Those by which oneDNN, MKL, ONNX Runtime's MLAS, PyTorch and llama.cpp choose their kernels, in Linux' names.
_CHOSEN_BY = frozenset((
    "ssse3", "sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx_vnni_int8", "avx_vnni_int16",
    "avx_ifma", "avx_ne_convert", "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "avx512ifma", "avx512vbmi",
    "avx512_vbmi2", "avx512_bitalg", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx10_1", "avx10_2", "amx_tile",
    "amx_int8", "amx_bf16", "amx_fp16",  # x86
    "asimd", "fphp", "asimdhp", "asimddp", "asimdfhm", "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16", "sme",
    "sme2",  # ARM
    "vx", "vxe", "vxe2", "nnpa",  # s390x
))  # fmt: skip
_MAC_NAMES = {
    "FEAT_AdvSIMD": "asimd",
    "AdvSIMD": "asimd",
    "FEAT_FP16": "asimdhp",
    "FEAT_FHM": "asimdfhm",
    "FEAT_DotProd": "asimddp",
    "FEAT_I8MM": "i8mm",
    "FEAT_BF16": "bf16",
    "FEAT_SME": "sme",
    "FEAT_SME2": "sme2",
    "avx1_0": "avx",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
}


@dataclass(frozen=True, slots=True)
class Processor:
    """One machine's processor.

    name: as its maker or the hypervisor calls it. family: the generation, for processors of one name; None if the
    system does not say. instruction_sets: those by which libraries choose kernels and which all cores have, sorted, in
    Linux' names; None if they are not known.
    """

    name: str
    family: str | None
    instruction_sets: tuple[str, ...] | None


def this_processor() -> Processor:
    """Return the processor of this machine, as far as its system describes it."""
    system = platform.system()
    if system == "Linux":
        return of_cpuinfo(_read(Path("/proc/cpuinfo")))
    if system == "Darwin":
        return of_sysctl(_sysctl("machdep.cpu", "hw.optional", "hw.cpufamily"))
    return Processor(_platform_name(), None, None)


def of_cpuinfo(text: str) -> Processor:
    """Return the processor that Linux describes in `/proc/cpuinfo`."""
    cores = [fields for block in text.split("\n\n") if (fields := _fields(block))]
    names = _distinct(core.get("model name") or core.get("Processor") for core in cores)
    families = _distinct(_family(core) for core in cores)
    sets = [core.get("flags") or core.get("Features") or core.get("features") for core in cores]
    known = [_CHOSEN_BY & set(listed.split()) for listed in sets if listed]
    return Processor(
        " and ".join(names) or _platform_name(),
        " and ".join(families) or None,
        tuple(sorted(frozenset.intersection(*known))) if known else None,
    )


def of_sysctl(text: str) -> Processor:
    """Return the processor that macOS describes in `sysctl machdep.cpu hw.optional hw.cpufamily`."""
    fields = _fields(text)
    found: set[str] = set()
    for key, value in fields.items():
        if key.startswith("hw.optional.") and value == "1":
            found.add(key.rpartition(".")[2])
        elif key.startswith("machdep.cpu.") and key.endswith("features"):
            found |= {name.lower().replace(".", "_") for name in value.split()}
    named = {_MAC_NAMES.get(name, name) for name in found}
    return Processor(
        fields.get("machdep.cpu.brand_string") or _platform_name(),
        fields.get("hw.cpufamily"),
        tuple(sorted(_CHOSEN_BY & named)) if found else None,
    )


def allowed_cores() -> int:
    """Return the number of cores in the affinity of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores(root: Path = Path("/")) -> float:
    """Return the cores that this process may use: those of its affinity, at most the quota of its control group.

    A container with `--cpus=1.5` sees all cores of its machine, and gets 1.5 of their time.
    """
    return min([allowed_cores(), *_quotas(root)])


def _quotas(root: Path) -> list[float]:
    """The quota in cores of each control group that holds this process; none where there is no limit."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            top, limit = root / "sys/fs/cgroup", "cpu.max"
        elif "cpu" in controllers.split(","):
            top, limit = root / "sys/fs/cgroup/cpu", "cpu.cfs_quota_us"
        else:
            continue
        group = top / place.lstrip("/")
        # In a container without a namespace of its own the path is the host's; what is mounted is the top.
        for directory in {top, *(one for one in (group, *group.parents) if one.is_relative_to(top))}:
            period = "" if controllers == "" else f" {_read(directory / 'cpu.cfs_period_us')}"
            found += _quota(f"{_read(directory / limit)}{period}")
    return found


def _quota(text: str) -> list[float]:
    """Of `200000 100000` 2.0; nothing of `max 100000`, `-1 100000` and texts of other forms."""
    parts = text.split()
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        return []
    return [int(parts[0]) / int(parts[1])]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, separator, value in pairs if separator}


def _family(core: Mapping[str, str]) -> str | None:
    """Without the stepping, which says little of speed and differs within one fleet."""
    if "cpu family" in core:
        return f"{core.get('vendor_id', 'unknown vendor')} family {core['cpu family']} model {core.get('model', '?')}"
    if "CPU part" in core:
        return f"implementer {core.get('CPU implementer', '?')} part {core['CPU part']}"
    return core.get("uarch") or core.get("cpu")


def _distinct(values: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def _sysctl(*names: str) -> str:
    try:
        answer = subprocess.run(
            ["sysctl", *names], capture_output=True, text=True, timeout=_SYSCTL_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout  # what it knows, even if one of the names is unknown to it


def _platform_name() -> str:
    return platform.processor() or platform.machine()
