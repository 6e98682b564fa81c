"""Dynamic int8 quantisation of an exported graph: weights once, activations at every step, row by row.

ONNX Runtime's own `quantize_dynamic` takes one scale for a whole activation tensor. In a batch, a row's result then
depends on the other rows, so the same seed would not give the same tokens. One large value also reduces the precision
of all rows. Here every row (token) has its own scale, its largest absolute value, and so has every column of the
weights. Source: LLM.int8(), Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section 2.1, "vector-wise".

The product itself is ONNX Runtime's int8 matrix multiplication, in the form that is exact on this processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from muai_lab.engines.onnx.decoder_graph import save_graph
from muai_lab.engines.onnx.graph_cache import read_facts
from muai_lab.engines.onnx.int8_product import MIDDLE, product_node, weights_of, zero_point_of
from muai_lab.engines.onnx.recipe import GraphFacts, Int8Product, Recipe

_LARGEST = 127
_TINY = 1e-12  # keeps a column of zeros from dividing by zero

_UNIT, _SHIFT, _ZERO, _LAST_AXIS = "int8/unit", "int8/shift", "int8/zero", "int8/last_axis"


def quantize_entry(recipe: Recipe, base: Path, directory: Path) -> GraphFacts:
    """Write the int8 graphs of the entry `base` into `directory`."""
    for path in sorted(base.iterdir()):
        if path.suffix == ".onnx":
            graph = onnx.load(path)
            if recipe.int8 == "weights":
                quantize_weights(graph)
            else:
                assert recipe.int8 is not None
                quantize_rows(graph, recipe.int8)
            save_graph(graph, directory / path.name)
    return read_facts(base)


def quantize_rows(model: Any, product: Int8Product) -> int:
    """Make every product with constant weights an int8 one, in place. Returns their number.

    A row's scale: x ≈ largest · (q - 128) / 127. A row of zeros has no scale; its quotient is not a number, but the
    result is multiplied by the row's largest value, which is 0.
    """
    graph = model.graph
    weights = {entry.name: entry for entry in graph.initializer}
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1 / _LARGEST, np.float32), _UNIT),
            numpy_helper.from_array(np.array(MIDDLE, np.uint8), _SHIFT),
            numpy_helper.from_array(zero_point_of(product), _ZERO),
            numpy_helper.from_array(np.array([-1], np.int64), _LAST_AXIS),
        ]
    )
    nodes: list[Any] = []
    rows: set[str] = set()  # activations that are quantised already
    quantized: set[str] = set()  # weights that are quantised already
    count = 0
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2:
            nodes.append(node)
            continue
        count += 1
        activation = node.input[0]
        if activation not in rows:
            rows.add(activation)
            nodes += _quantized_rows(activation)
        if weight.name not in quantized:
            quantized.add(weight.name)
            graph.initializer.extend(_quantized_columns(weight, product))
        nodes += _product(node, activation, weight.name)
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unread_weights(graph)
    if not any(entry.domain == "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return count


def quantize_weights(model: Any) -> None:
    """Quantise weights to int8 in blocks, in place. ONNX Runtime's GPU kernels multiply them with plain activations."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    MatMulNBitsQuantizer(model, bits=8, block_size=32, is_symmetric=True).process()


def _quantized_rows(name: str) -> list[Any]:
    return [
        helper.make_node("Abs", [name], [f"{name}/int8/abs"]),
        helper.make_node("ReduceMax", [f"{name}/int8/abs", _LAST_AXIS], [f"{name}/int8/largest"], keepdims=1),
        helper.make_node("Div", [name, f"{name}/int8/largest"], [f"{name}/int8/relative"]),
        helper.make_node("QuantizeLinear", [f"{name}/int8/relative", _UNIT, _SHIFT], [f"{name}/int8/rows"]),
    ]


def _quantized_columns(weight: Any, product: Int8Product) -> list[Any]:
    """Return 8-bit weights `[in, out]` and the scale `[out]` of each column."""
    values = numpy_helper.to_array(weight).astype(np.float32)
    scales = np.maximum(np.abs(values).max(axis=0), _TINY) / _LARGEST
    return [
        numpy_helper.from_array(weights_of(np.rint(values / scales), product), f"{weight.name}/int8/columns"),
        numpy_helper.from_array(scales.astype(np.float32), f"{weight.name}/int8/scales"),
    ]


def _product(node: Any, activation: str, weight: str) -> list[Any]:
    relative = f"{node.output[0]}/int8/relative"
    inputs = (f"{activation}/int8/rows", f"{weight}/int8/columns", _UNIT, f"{weight}/int8/scales", _SHIFT, _ZERO)
    return [
        product_node(inputs, relative),
        helper.make_node("Mul", [relative, f"{activation}/int8/largest"], [node.output[0]], name=node.name),
    ]


def _drop_unread_weights(graph: Any) -> None:
    read = {name for node in graph.node for name in node.input}
    kept = [entry for entry in graph.initializer if entry.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
