"""Row-wise dynamic int8: close to fp32, and no row depends on the rows beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from muai_lab.engines.onnx.int8 import quantize_rows
from muai_lab.engines.onnx.int8_product import choose_product

PRODUCT = choose_product()
WEIGHTS = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(5, 1, 64)).astype(np.float32)


def product_graph(weights: np.ndarray, *, twice: bool = False) -> Any:
    """y = x · W, and z = x · W again where asked."""
    outputs = ["y", "z"] if twice else ["y"]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [name], name=f"product {name}") for name in outputs],
            "products",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1, 64])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )


def run(model: Any, rows: np.ndarray, level: str = "ORT_ENABLE_ALL") -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": rows})


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_the_product_is_close_to_that_of_floats(level: str) -> None:
    model = product_graph(WEIGHTS)
    expected = ROWS @ WEIGHTS

    assert quantize_rows(model, PRODUCT) == 1
    (found,) = run(model, ROWS, level)

    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_a_row_gives_the_same_alone_and_in_any_company() -> None:
    model = product_graph(WEIGHTS)
    quantize_rows(model, PRODUCT)
    loud_company = np.concatenate([ROWS, 1000 * ROWS])

    (together,) = run(model, loud_company)
    alone = [run(model, row[None])[0][0] for row in ROWS]

    assert np.array_equal(together[: len(ROWS)], np.stack(alone))


def test_a_row_of_zeros_gives_zeros() -> None:
    model = product_graph(WEIGHTS)
    quantize_rows(model, PRODUCT)
    rows = ROWS.copy()
    rows[2] = 0

    (found,) = run(model, rows)

    assert not found[2].any()
    assert np.isfinite(found).all()


def test_a_column_of_zeros_gives_zeros() -> None:
    weights = WEIGHTS.copy()
    weights[:, 7] = 0
    model = product_graph(weights)
    quantize_rows(model, PRODUCT)

    (found,) = run(model, ROWS)

    assert not found[..., 7].any()
    assert np.isfinite(found).all()


def test_activations_and_weights_are_quantised_once_however_often_they_are_used() -> None:
    model = product_graph(WEIGHTS, twice=True)

    assert quantize_rows(model, PRODUCT) == 2

    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 1
    y, z = run(model, ROWS)
    assert np.array_equal(y, z)


def test_the_weights_become_a_quarter_of_their_size() -> None:
    model = product_graph(WEIGHTS)
    quantize_rows(model, PRODUCT)

    held = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    assert "w" not in held
    assert sum(values.nbytes for values in held.values()) < WEIGHTS.nbytes / 4 + 48 * 4 + 64


def test_products_of_two_activations_stay_as_they_are() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "scores",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1, 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        )
    )

    assert quantize_rows(model, PRODUCT) == 0
    assert [node.op_type for node in model.graph.node] == ["Transpose", "MatMul"]
