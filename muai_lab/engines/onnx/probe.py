"""The check if ONNX Runtime can serve here; imports the runtime, which knows its providers, but no exporter."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from muai_lab.engines.architectures import encoder_decoder_refusal
from muai_lab.engines.availability import Availability, installed_version
from muai_lab.errors import EngineError, ModelError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OptimizationSettings

KEYS: Mapping[str, str] = {
    "optimization.onnx.execution_providers": "providers of the inference session, those this build has",
    "optimization.onnx.optimization_level": "GraphOptimizationLevel of the session",
    "optimization.onnx.enable_quantization": "int8 weights and activations, one scale a row (on a GPU: weights only)",
    "optimization.onnx.dtype": "data type of the exported graph and of keys and values",
    "optimization.onnx.threads": "intra_op_num_threads of the session",
    "optimization.batcher.max_batch_size": "slots",
}

# Decoders that onnxruntime-genai's builder exports to a graph that runs over slots, with the same logits as PyTorch.
DECODERS = ("ernie4_5", "gemma", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3")

_DISTRIBUTIONS = ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime")
_EXPORTERS = ("onnx", "onnxscript", "onnxruntime_genai")


def availability(optimization: OptimizationSettings) -> Availability:
    """See `muai_lab.engines.catalogue.EngineKind`."""
    extra = "onnx-gpu" if find_spec("onnxruntime") is None and _has_cuda_torch() else "onnx"
    if find_spec("onnxruntime") is None:
        return Availability(f"onnxruntime is not installed: pip install 'muai-lab[{extra}]'")
    version = installed_version(*_DISTRIBUTIONS)
    missing = [name for name in _EXPORTERS if find_spec(name) is None]
    if missing:
        return Availability(
            f"{', '.join(missing)} is not installed, which exports the graphs: pip install 'muai-lab[{extra}]'", version
        )
    try:
        from muai_lab.engines.onnx.loading import choose_dtype
        from muai_lab.engines.onnx.session import choose_providers
    except ImportError as error:
        return Availability(f"onnxruntime cannot be imported: {error}", version)
    settings = optimization.onnx
    providers = choose_providers(settings.execution_providers)
    if not providers.serving:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in providers.skipped.items())
        return Availability(f"none of optimization.onnx.execution_providers can serve ({reasons})", version)
    try:
        choose_dtype(settings.dtype, providers.device, encoder_decoder=False)
    except EngineError as error:
        return Availability(error.reason, version)
    on_gpu = providers.device.type == "cuda"
    return Availability(None, version, providers.device.type, ("fp32", "fp16", "bf16") if on_gpu else ("fp32",))


def supports(optimization: OptimizationSettings, source: ModelSource) -> str | None:
    """See `muai_lab.engines.catalogue.EngineKind`. The model must have a graph that runs over slots."""
    if source.encoder_decoder:
        refusal = encoder_decoder_refusal(source.model_type)
        if refusal is not None:
            return refusal
    elif source.model_type not in DECODERS:
        return f"decoders of type {source.model_type!r} are not served, only {', '.join(DECODERS)} are"
    if _is_quantized(source):
        return "its weights are quantised already; ONNX Runtime quantises plain weights itself (enable_quantization)"
    return None


def _is_quantized(source: ModelSource) -> bool:
    try:
        return bool(source.config().get("quantization_config"))
    except ModelError:
        return False  # the load reports what is wrong with the file


def _has_cuda_torch() -> bool:
    return "+cu" in (installed_version("torch") or "")
