"""The GPUs that this process may use: as CUDA would show them, whoever else has more on the same machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from muai_lab import gpus
from muai_lab.gpus import Gpu, memory_reader, visible_gpus, visible_names

IDENTIFIERS = {"GPU-1f00": "0", "GPU-1f22": "1", "GPU-33aa": "2"}


class NVMLError(Exception):
    """As nvidia-ml-py's."""


class Nvml:
    """nvidia-ml-py on a machine with GPUs of 80 GiB: used GiB by number, None for one that is lost."""

    NVMLError = NVMLError

    def __init__(self, *used: int | None, parts: dict[str, int] | None = None, text: type = str) -> None:
        self._used = dict(enumerate(used))
        self._parts = parts or {}
        self._text = text
        self.opened = 0

    def nvmlInit(self) -> None:  # noqa: N802 - the library's name
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self) -> str | bytes:  # noqa: N802
        return self._said("580.1")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._used)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802
        if name not in self._parts:
            raise NVMLError
        return name

    def nvmlDeviceGetUUID(self, index: int) -> str | bytes:  # noqa: N802
        return self._said(list(IDENTIFIERS)[index])

    def nvmlDeviceGetName(self, handle: int | str) -> str | bytes:  # noqa: N802
        return self._said("NVIDIA H100" if isinstance(handle, int) else "NVIDIA H100 MIG 1g.10gb")

    def nvmlDeviceGetMemoryInfo(self, handle: int | str) -> SimpleNamespace:  # noqa: N802
        used = self._used[handle] if isinstance(handle, int) else self._parts[handle]
        if used is None:
            raise NVMLError
        return SimpleNamespace(used=used * 2**30, total=(80 if isinstance(handle, int) else 10) * 2**30)

    def _said(self, text: str) -> str | bytes:
        return text.encode() if self._text is bytes else text


def has(monkeypatch: pytest.MonkeyPatch, nvml: object, visible: str | None = None) -> None:
    """The machine has this NVML (None: nvidia-ml-py is not installed), and the user this CUDA_VISIBLE_DEVICES."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["0", "1", "2"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2", ["2"]),
        ("2,0", ["2", "0"]),
        (" 1 , 2 ", ["1", "2"]),
        ("01", ["1"]),
        ("0,7,1", ["0"]),
        ("0,-1,1", ["0"]),
        ("0,,1", ["0"]),
        ("1,1", []),
        ("²", []),
        ("GPU-33aa", ["2"]),
        ("GPU-33", ["2"]),
        ("GPU-1f", []),
        ("GPU-1f22,0", ["1", "0"]),
        ("GPU-none,0", []),
        ("MIG-abc", ["MIG-abc"]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(
    visible: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, None, visible)

    assert visible_names(["0", "1", "2"], IDENTIFIERS) == names


@pytest.mark.parametrize("text", [str, bytes])
def test_gpus_are_listed_with_their_facts(text: type, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(5, 6, text=text)
    has(monkeypatch, nvml, "1")

    assert visible_gpus() == [Gpu("1", "NVIDIA H100", 80 * 2**30, "580.1")]
    assert nvml.opened == 0


def test_a_gpu_whose_memory_is_not_told_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, Nvml(None))

    assert visible_gpus() == [Gpu("0", "NVIDIA H100", None, "580.1")]


def test_a_part_of_a_gpu_is_named_by_its_identifier(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, Nvml(5, parts={"MIG-abc": 3}), "MIG-abc,MIG-gone,0")

    assert visible_gpus() == [Gpu("MIG-abc", "NVIDIA H100 MIG 1g.10gb", 10 * 2**30, "580.1")]
    read = memory_reader()
    assert read is not None
    assert read() == [("MIG-abc", 3 * 2**30)]


def test_memory_is_read_of_visible_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, Nvml(5, 6, 7), "2,0")
    read = memory_reader()

    assert read is not None
    assert read() == [("2", 7 * 2**30), ("0", 5 * 2**30)]


def test_a_gpu_that_stops_answering_has_no_sample_and_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, Nvml(5, None, 7))
    read = memory_reader()

    assert read is not None
    assert read() == [("0", 5 * 2**30), ("2", 7 * 2**30)]


@pytest.mark.parametrize("fails_at", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_a_driver_that_does_not_answer_is_no_gpu(fails_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(5)

    def fail(*_: object) -> None:
        raise NVMLError

    monkeypatch.setattr(nvml, fails_at, fail)
    has(monkeypatch, nvml)

    assert visible_gpus() == []
    assert nvml.opened == 0
    assert memory_reader() is None


def test_without_the_library_there_is_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, None)

    assert memory_reader() is None


def test_without_the_library_nvidia_smi_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "0, GPU-1f00, NVIDIA A100, 81920, 550.9\n1, GPU-1f22, NVIDIA GB10, [N/A], 550.9\n\nsomething else\n"
    has(monkeypatch, None, "1,0")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_keywords: SimpleNamespace(stdout=said))

    assert visible_gpus() == [Gpu("1", "NVIDIA GB10", None, "550.9"), Gpu("0", "NVIDIA A100", 80 * 2**30, "550.9")]


def test_without_either_the_drivers_files_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bus, identifier in (("0000:0b", "GPU-1f22"), ("0000:0a", "GPU-1f00")):
        (tmp_path / "gpus" / bus).mkdir(parents=True)
        (tmp_path / "gpus" / bus / "information").write_text(f"Model: \t NVIDIA L4\nGPU UUID: \t {identifier}\n")
    has(monkeypatch, None, "GPU-1f22")

    assert gpus._from_driver_files(tmp_path) == [Gpu("1", "NVIDIA L4", None, None)]


def test_a_machine_without_any_of_them_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(gpus, "_from_driver_files", list)

    assert visible_gpus() == []
