"""The int8 matrix product of ONNX Runtime, in the form that this processor computes exactly.

ONNX Runtime multiplies unsigned activations with signed (U8S8) or unsigned (U8U8) weights. Each kind of processor has
its own kernel, and some of these kernels are wrong:

- U8S8 on x86 without VNNI (AVX2 such as AMD Zen 1 to 3, AVX-512 such as Skylake): two products are added in 16 bits,
  and the sum saturates.
- U8U8 on x86 with VNNI or AMX before ONNX Runtime 1.25: it ran through the kernel for signed weights
  (https://github.com/microsoft/onnxruntime/pull/27671).

The instruction sets alone do not decide which product is exact. So each one is tried at its extremes, which takes
0.1 s. U8S8 comes first: processors that compute it exactly have dedicated instructions for it (VNNI, AMX), but none for
U8U8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from muai_lab.engines.onnx.child_process import NAME
from muai_lab.engines.onnx.recipe import Int8Product
from muai_lab.errors import EngineError

MIDDLE = 128
"""Zero point of unsigned values."""

_CPU = ("CPUExecutionProvider",)
_PREFERENCE: tuple[Int8Product, ...] = ("u8s8", "u8u8")
# Kernels differ in the numbers of rows, columns and terms that they compute at once, and in their remainders. With this
# depth the largest sum, depth × 127², is still exact in fp32.
_DEPTH, _COLUMNS = 1031, 83
_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 32, 33, 70)

IsExact = Callable[[Int8Product], bool]
ProductInputs = tuple[str, str, str, str, str, str]
"""Names of activations, weights, the scale of each, and the zero point of each."""


def choose_product(providers: Sequence[str] = _CPU, is_exact: IsExact | None = None) -> Int8Product:
    """Choose the fastest product that is exact on this processor.

    Args:
        providers: Execution providers of the session that serves.
        is_exact: True if the product is exact; by default, the product is tried here.

    Raises:
        EngineError: If ONNX Runtime computes neither product exactly.
    """
    for product in _PREFERENCE:
        if is_exact(product) if is_exact else computes_exactly(product, providers):
            return product
    raise EngineError(
        NAME,
        f"ONNX Runtime {onnxruntime.__version__} computes wrong int8 products on this processor, with signed and with "
        "unsigned weights: set optimization.onnx.enable_quantization=false, or install another version",
    )


def computes_exactly(product: Int8Product, providers: Sequence[str] = _CPU) -> bool:
    """Return True if the product equals that of integers, for the largest values and for random ones."""
    random = np.random.default_rng(0)
    rows = random.integers(-127, 128, (max(_ROWS), _DEPTH))
    columns = random.integers(-127, 128, (_DEPTH, _COLUMNS))
    rows[::3], columns[:, ::3] = 127, 127
    rows[1::3], columns[:, 1::3] = random.choice([-127, 127], rows[1::3].shape), -127
    expected = (rows @ columns).astype(np.float32)
    session, activations = _session(columns, product, providers), (rows + MIDDLE).astype(np.uint8)
    return all(
        np.array_equal(session.run(None, {"rows": activations[-count:]})[0], expected[-count:]) for count in _ROWS
    )


def weights_of(values: np.ndarray, product: Int8Product) -> np.ndarray:
    """Return whole numbers from -127 to 127 in the type that the product takes its weights in."""
    return values.astype(np.int8) if product == "u8s8" else (values + MIDDLE).astype(np.uint8)


def zero_point_of(product: Int8Product) -> np.ndarray:
    """Return the scalar that `weights_of` added, in the weights' type."""
    return np.array(0, np.int8) if product == "u8s8" else np.array(MIDDLE, np.uint8)


def product_node(inputs: ProductInputs, output: str) -> Any:
    """Return the graph's node: `[..., depth] @ [depth, columns]` in fp32."""
    return helper.make_node("MatMulIntegerToFloat", list(inputs), [output], domain="com.microsoft")


def _session(columns: np.ndarray, product: Int8Product, providers: Sequence[str]) -> onnxruntime.InferenceSession:
    constants = {
        "columns": weights_of(columns, product),
        "unit": np.array(1, np.float32),
        "units": np.ones(_COLUMNS, np.float32),
        "middle": np.array(MIDDLE, np.uint8),
        "zero": zero_point_of(product),
    }
    graph = helper.make_graph(
        [product_node(("rows", "columns", "unit", "units", "middle", "zero"), "sums")],
        "product",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, ["rows", _DEPTH])],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["rows", _COLUMNS])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(providers))
