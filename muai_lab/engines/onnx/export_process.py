"""The process that exports one graph: `python -m muai_lab.engines.onnx.export_process <order as JSON>`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muai_lab.engines.onnx.child_process import NAME, obey
from muai_lab.engines.onnx.graph_cache import source_of, write_facts
from muai_lab.engines.onnx.recipe import GraphFacts, Recipe
from muai_lab.models.registry import ModelSource


def export(source: ModelSource, recipe: Recipe, directory: Path, base: Path | None) -> GraphFacts:
    """Write the graph into `directory`.

    base: the graph to quantise, if the recipe says int8. Raises EngineError for files that are missing, damaged or of
    another model, and for a graph that does not compute the same as the checkpoint.
    """
    if base is not None:
        from muai_lab.engines.onnx.int8 import quantize_entry

        return quantize_entry(recipe, base, directory)
    import torch

    from muai_lab.engines.onnx.decoder_graph import export_decoder
    from muai_lab.engines.onnx.loading import open_graph
    from muai_lab.engines.onnx.proof import check_logits, sample_logits
    from muai_lab.engines.onnx.t5_graph import export_t5
    from muai_lab.engines.pytorch.loading import eos_token_ids, load_model, max_model_len
    from muai_lab.engines.pytorch.slot_engine import over_slots
    from muai_lab.settings.schema import OnnxSettings

    model = load_model(source, torch.float32, torch.device("cpu"))
    config, ends, max_len = model.config, eos_token_ids(model), max_model_len(model.config, None)
    stepped = over_slots(model, encoder_decoder=source.encoder_decoder, slots=1, max_len=max_len, engine=NAME)
    expected = sample_logits(stepped, vocab_size=config.vocab_size)
    del stepped
    if recipe.kind == "encoder_decoder":
        facts = export_t5(model, directory, max_len=max_len, eos_token_ids=ends)
    else:
        del model  # the builder loads it once more
        facts = export_decoder(source, recipe, directory, config=config, eos_token_ids=ends)
    if recipe.target == "cpu":
        providers = ("CPUExecutionProvider",)
        graph = open_graph(directory, recipe.kind, facts, OnnxSettings(), providers, slots=1)
        check_logits(sample_logits(graph, vocab_size=config.vocab_size), expected)
    return facts


def _work(order: Mapping[str, Any], directory: Path) -> None:
    base = None if order["base"] is None else Path(order["base"])
    write_facts(directory, export(source_of(order["source"]), Recipe(**order["recipe"]), directory, base))


if __name__ == "__main__":
    sys.exit(obey(sys.argv[1], _work))
