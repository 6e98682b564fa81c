"""ONNX Runtime sessions: providers, threads, and tensors that are bound without copying."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime
import psutil
import torch

from muai_lab.engines.onnx.child_process import NAME
from muai_lab.errors import EngineError
from muai_lab.processor import usable_cores

if TYPE_CHECKING:
    from muai_lab.settings.schema import OnnxSettings

log = logging.getLogger(__name__)

_ELEMENT_TYPES = {  # of onnx.TensorProto
    torch.float32: 1,
    torch.int32: 6,
    torch.int64: 7,
    torch.float16: 10,
    torch.bfloat16: 16,
}


@dataclass(frozen=True, slots=True)
class Providers:
    """Execution providers that serve, in order, and configured ones that cannot, with reasons."""

    serving: tuple[str, ...]
    skipped: Mapping[str, str]

    @property
    def device(self) -> torch.device:
        """The device of the first provider, which also holds keys and values."""
        on_gpu = self.serving[0] in ("CUDAExecutionProvider", "TensorrtExecutionProvider")
        return torch.device("cuda" if on_gpu else "cpu")

    def without(self, name: str, reason: str) -> Providers:
        """Return the same without a provider that failed."""
        return Providers(tuple(other for other in self.serving if other != name), {**self.skipped, name: reason})


def choose_providers(wanted: Sequence[str]) -> Providers:
    """Return those of `wanted` that can serve here; `serving` is empty if none can."""
    built_in = onnxruntime.get_available_providers()
    skipped: dict[str, str] = {}
    for name in wanted:
        if name not in built_in:
            skipped[name] = "this build of ONNX Runtime does not have it"
        elif name in ("CUDAExecutionProvider", "TensorrtExecutionProvider") and not torch.cuda.is_available():
            skipped[name] = "PyTorch, which keeps the keys and values, sees no CUDA device"
    return Providers(tuple(name for name in wanted if name not in skipped), skipped)


def default_threads() -> int:
    """Return the number of physical cores that this process may use, rounded up."""
    allowed = math.ceil(usable_cores())
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def open_session(path: Path, settings: OnnxSettings, providers: Sequence[str]) -> onnxruntime.InferenceSession:
    """Open a session over the graph in `path`. Raises EngineError if the graph cannot be loaded."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = {
        "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[settings.optimization_level]
    # An explicit number, even if it is the default: without it ONNX Runtime also pins its threads to cores, which the
    # server and the load generator must then share with them.
    options.intra_op_num_threads = settings.threads or default_threads()
    options.inter_op_num_threads = 1
    # Threads that spin for work instead of sleeping are a third faster on an idle machine, and slower by as much or
    # more beside a server and a load generator, as this engine runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # plans memory per input shape, but here every step has another shape
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # its errors are a dozen unrelated classes of a C extension
        reason = str(error).strip().splitlines()[0]
        raise EngineError(NAME, f"ONNX Runtime cannot load the exported graph {path}: {reason}") from error
    # ONNX Runtime skips a provider whose own libraries are missing without an error, and serves with another one.
    if providers[0] not in session.get_providers():
        raise ProviderFailed(providers[0])
    return session


class ProviderFailed(Exception):
    """A provider of this build does not start on this machine; `str(error)` is its name."""


class Binding:
    """Tensors bound to a session's inputs and outputs by address; they must outlive the run."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._on_gpu = False

    def input(self, name: str, tensor: torch.Tensor) -> None:
        """Bind a contiguous tensor as input; it is read at the run on a CPU, at this call on a GPU."""
        self._binding.bind_input(name, *self._place(tensor))

    def output(self, name: str, tensor: torch.Tensor) -> None:
        """Bind a contiguous tensor that the run writes."""
        self._binding.bind_output(name, *self._place(tensor))

    def run(self) -> None:
        """Compute; outputs are complete when it returns. Raises EngineError if the graph fails."""
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()  # ONNX Runtime has a stream of its own
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # its errors are a dozen unrelated classes of a C extension
            raise EngineError(NAME, f"a step failed: {str(error).strip()}") from error

    def _place(self, tensor: torch.Tensor) -> tuple[str, int, int, tuple[int, ...], int]:
        if not tensor.is_contiguous():
            raise ValueError("only contiguous memory can be bound")
        device = tensor.device
        self._on_gpu = self._on_gpu or device.type == "cuda"
        return device.type, device.index or 0, _ELEMENT_TYPES[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()
