"""What the ONNX Runtime engine says of itself without loading a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from muai_lab.engines.onnx import probe
from muai_lab.models.registry import ModelSource
from muai_lab.settings.catalogue import keys_by_path
from muai_lab.settings.schema import OnnxSettings, OptimizationSettings


def settings(**onnx: object) -> OptimizationSettings:
    return OptimizationSettings(onnx=OnnxSettings(**onnx))  # type: ignore[arg-type]


def model(model_type: str, *, encoder_decoder: bool = False, path: Path | None = None) -> ModelSource:
    return ModelSource("some", path, None, "local", None, encoder_decoder, model_type)


def test_it_serves_on_the_cpu_with_the_default_settings() -> None:
    found = probe.availability(settings())

    assert found.available
    assert found.version is not None


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxruntime_genai", "onnx", "onnxscript"])
def test_a_missing_package_is_named_with_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "find_spec", lambda name: None if name == missing else object())

    reason = probe.availability(settings()).reason

    assert reason is not None
    assert missing in reason
    assert "pip install 'muai-lab[onnx" in reason


def test_providers_that_this_build_lacks_are_named_when_none_is_left() -> None:
    reason = probe.availability(settings(execution_providers=("OpenVINOExecutionProvider",))).reason

    assert reason is not None
    assert "optimization.onnx.execution_providers" in reason
    assert "OpenVINOExecutionProvider: this build of ONNX Runtime does not have it" in reason


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_dtype_that_a_cpu_lacks_is_a_reason(dtype: str) -> None:
    reason = probe.availability(settings(execution_providers=("CPUExecutionProvider",), dtype=dtype)).reason

    assert reason is not None
    assert dtype in reason
    assert "optimization.onnx.dtype" in reason


@pytest.mark.parametrize(
    ("source", "served"),
    [
        (model("qwen2"), True),
        (model("llama"), True),
        (model("t5", encoder_decoder=True), True),
        (model("mamba"), False),
        (model("bart", encoder_decoder=True), False),
        (model("t5"), False),
    ],
)
def test_it_tells_which_architectures_it_serves(source: ModelSource, served: bool) -> None:
    reason = probe.supports(settings(), source)

    assert (reason is None) == served
    if reason is not None:
        assert repr(source.model_type) in reason
        assert "only" in reason


def test_weights_that_are_quantised_already_are_refused(tmp_path: Path) -> None:
    config = {"model_type": "qwen2", "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    reason = probe.supports(settings(), model("qwen2", path=tmp_path))

    assert reason is not None
    assert "quantised already" in reason


def test_every_key_of_its_section_reaches_it() -> None:
    section = {path for path in keys_by_path() if path.startswith("optimization.onnx.")}

    assert section - set(probe.KEYS) == {"optimization.onnx.enabled"}
    assert set(probe.KEYS) <= set(keys_by_path())


def test_the_probe_imports_no_library() -> None:
    code = "import sys, muai_lab.engines.onnx.probe; print({'onnxruntime', 'torch', 'onnx'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
