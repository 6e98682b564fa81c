"""The process that exports one graph: `python -m muai_lab.engines.onnx.export_process <order as JSON>`.

Whatever it prints is kept by the process that started it, and shown only if it fails. A reason that is the user's to
mend goes into a file of the target directory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from muai_lab.engines.onnx.graph_cache import FAILURE_FILE, write_facts
from muai_lab.engines.onnx.recipe import GraphFacts, Recipe
from muai_lab.errors import EngineError, MuaiError
from muai_lab.models.registry import ModelSource


def export(source: ModelSource, recipe: Recipe, directory: Path, base: Path | None) -> GraphFacts:
    """Write the graph into `directory`. base: the same graph before it is quantised, where the recipe says int8."""
    if base is not None:
        from muai_lab.engines.onnx.int8 import quantize_entry

        return quantize_entry(source, recipe, base, directory)
    if recipe.kind == "decoder":
        from muai_lab.engines.onnx.decoder_graph import export_decoder

        return export_decoder(source, recipe, directory)
    from muai_lab.engines.onnx.t5_graph import export_t5

    return export_t5(source, directory)


def main(order: str) -> int:
    """Carry out one order; the exit status says whether the graph is complete."""
    fields = json.loads(order)
    path = Path(fields["source"].pop("path"))
    source = ModelSource(path=path, **fields["source"])
    directory = Path(fields["directory"])
    base = None if fields["base"] is None else Path(fields["base"])
    try:
        facts = export(source, Recipe(**fields["recipe"]), directory, base)
    except MuaiError as error:
        reason = error.reason if isinstance(error, EngineError) else str(error)
        (directory / FAILURE_FILE).write_text(json.dumps(reason), encoding="utf-8")
        return 2
    write_facts(directory, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
