"""The int8 product: of the forms that ONNX Runtime has, one that this processor computes exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from muai_lab.engines.onnx.int8 import quantize_rows
from muai_lab.engines.onnx.int8_product import choose_product, computes_exactly
from muai_lab.engines.onnx.recipe import Int8Product
from muai_lab.errors import EngineError

HERE = choose_product()


@pytest.mark.parametrize(
    ("exact", "chosen"),
    [
        ({"u8s8": True, "u8u8": True}, "u8s8"),
        ({"u8s8": True, "u8u8": False}, "u8s8"),  # VNNI and AMX before ONNX Runtime 1.25
        ({"u8s8": False, "u8u8": True}, "u8u8"),  # AVX2, and AVX-512 without VNNI
    ],
)
def test_the_fastest_exact_product_is_chosen(exact: Mapping[Int8Product, bool], chosen: Int8Product) -> None:
    assert choose_product(is_exact=exact.__getitem__) == chosen


def test_a_processor_without_an_exact_product_gets_no_int8() -> None:
    with pytest.raises(EngineError, match=r"optimization\.onnx\.enable_quantization=false"):
        choose_product(is_exact=lambda product: False)


def test_a_saturating_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Saturating:
        def run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            rows = inputs["rows"].astype(np.int64)
            pairs = rows[:, :, None] * self.columns
            if pairs.shape[1] % 2:
                pairs = np.concatenate([pairs, np.zeros_like(pairs[:, :1])], axis=1)
            sums = np.clip(pairs[:, ::2] + pairs[:, 1::2], -(2**15), 2**15 - 1).sum(axis=1)
            return [(sums - 128 * self.columns.sum(axis=0)).astype(np.float32)]

        def __init__(self, columns: np.ndarray, product: Int8Product, providers: object) -> None:
            self.columns = columns

    monkeypatch.setattr("muai_lab.engines.onnx.int8_product._ROWS", (1, 4))
    monkeypatch.setattr("muai_lab.engines.onnx.int8_product._session", Saturating)

    assert not computes_exactly("u8s8")


@given(
    rows=st.integers(1, 40),
    depth=st.integers(1, 300),
    columns=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
    extreme=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_the_quantised_product_is_that_of_integers(
    rows: int, depth: int, columns: int, seed: int, extreme: bool
) -> None:
    """Whole numbers whose largest in every row and column is 127 are quantised without error."""
    random = np.random.default_rng(seed)
    left, right = (
        random.choice([-127, 127], shape) if extreme else random.integers(-127, 128, shape)
        for shape in ((rows, depth), (depth, columns))
    )
    left[:, random.integers(depth)] = 127
    right[random.integers(depth)] = -127

    model = whole_product(right.astype(np.float32))
    quantize_rows(model, HERE)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": left.astype(np.float32)})

    assert np.allclose(found, left @ right, rtol=1e-5, atol=1e-3 * depth)


def whole_product(weights: np.ndarray) -> Any:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", len(weights)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
