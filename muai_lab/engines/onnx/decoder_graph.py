"""Decoder-only models as graphs: onnxruntime-genai's model builder, with simpler inputs for the lengths of rows.

The attention of the builder's graphs (GroupQueryAttention) appends to keys and values in place. It computes each row's
length from the row sums of an attention mask. Here the lengths themselves become the input, so that no step has to
build a mask `[rows, positions]`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

from muai_lab.engines.onnx.child_process import NAME
from muai_lab.engines.onnx.recipe import GraphFacts, Recipe
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource

GRAPH_FILE = "model.onnx"
LAST_POSITIONS = "last_positions"
LONGEST = "longest"

_LENGTHS_INPUT, _LONGEST_INPUT = 5, 6  # of GroupQueryAttention
_INPUTS = ("input_ids", "past_key_values.", LAST_POSITIONS, LONGEST)


def export_decoder(
    source: ModelSource, recipe: Recipe, directory: Path, *, config: Any, eos_token_ids: frozenset[int]
) -> GraphFacts:
    """Export the checkpoint with this configuration. Raises EngineError for an architecture that is not served."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        built = Path(scratch) / "built"
        arguments = ("", str(source.path), str(built), recipe.dtype, recipe.target, scratch)
        try:
            options = parse_extra_options(
                *arguments, ["prune_lm_head=true", "windowed_kv_cache=false", "hf_token=false"]
            )
            create_model(*arguments, **options)
        except NotImplementedError as error:
            raise EngineError(NAME, f"onnxruntime-genai cannot export {config.model_type!r} models: {error}") from error
        described = json.loads((built / "genai_config.json").read_text(encoding="utf-8"))["model"]
        graph = onnx.load(built / GRAPH_FILE)
    take_lengths(graph)
    set_windows(graph, config)
    save_graph(graph, directory / GRAPH_FILE)
    decoder = described["decoder"]
    return GraphFacts(
        layers=decoder["num_hidden_layers"],
        kv_heads=decoder["num_key_value_heads"],
        head_dim=decoder["head_size"],
        vocab_size=described["vocab_size"],
        max_len=described["context_length"],
        eos_token_ids=tuple(sorted(eos_token_ids)),
    )


def take_lengths(model: Any) -> None:
    """Replace the attention mask by `last_positions` [rows] (each row's length - 1) and `longest` (scalar), int32.

    Raises EngineError if the mask has another use in the graph.
    """
    graph = model.graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    if not attention:
        raise EngineError(NAME, "its graph has no GroupQueryAttention, which the slots need")
    for node in attention:
        node.input[_LENGTHS_INPUT] = LAST_POSITIONS
        node.input[_LONGEST_INPUT] = LONGEST
    _drop_unused(graph)
    graph.input.extend(
        [
            helper.make_tensor_value_info(LAST_POSITIONS, TensorProto.INT32, ["batch_size"]),
            helper.make_tensor_value_info(LONGEST, TensorProto.INT32, []),
        ]
    )
    foreign = [entry.name for entry in graph.input if not entry.name.startswith(_INPUTS)]
    if foreign:
        raise EngineError(NAME, f"its graph needs the input {foreign[0]!r}, which the slots do not give")


def set_windows(model: Any, config: Any) -> None:
    """Set each layer's attention window as the checkpoint's configuration says.

    The builder sets it only if the configuration lists the type of each layer; Mistral's does not.
    """
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    attention = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    for layer, node in enumerate(attention):
        slides = window is not None and (types is None or types[layer] == "sliding_attention")
        kept = [attribute for attribute in node.attribute if attribute.name != "local_window_size"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("local_window_size", window if slides else -1)])


def save_graph(model: Any, path: Path) -> None:
    """Write the graph, with its weights in a file beside it."""
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)


def _drop_unused(graph: Any) -> None:
    """Remove nodes and inputs that nothing reads."""
    wanted = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):  # in topological order, so readers come before their inputs
        if any(output in wanted for output in node.output):
            kept.append(node)
            wanted.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    unread = [entry for entry in graph.input if entry.name not in wanted]
    for entry in unread:
        graph.input.remove(entry)
