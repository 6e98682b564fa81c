"""The process that measures one agreement: `python -m muai_lab.engines.onnx.agreement_process <order as JSON>`.

The base graph continues fixed prompts greedily. The int8 graph reads the same text (teacher forcing), so a difference
does not affect the positions after it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from muai_lab.engines.base import PrefillChunk
from muai_lab.engines.onnx.agreement import AGREEMENT_FILE, Int8Agreement, SessionKind
from muai_lab.engines.onnx.child_process import obey
from muai_lab.engines.onnx.graph_cache import read_facts, source_of
from muai_lab.engines.onnx.loading import SlotGraph, open_graph
from muai_lab.engines.onnx.recipe import Recipe
from muai_lab.models.registry import ModelSource
from muai_lab.models.tokenizer import load_tokenizer
from muai_lab.settings.schema import OnnxSettings

_TOKENS = 48  # of each prompt's continuation
_PROMPTS = (
    "The capital of France is",
    "A recipe for bread: mix flour, water, salt and yeast, then",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "In 1905 a clerk at the patent office in Bern wrote four papers. The first of them explains why light",
    "Summarise: the river rose after three days of rain, the bridge was closed, and the school moved its lessons.",
    "Question: how many legs do seven spiders have? Answer:",
)


def measure(source: ModelSource, recipe: Recipe, session: SessionKind, *, base: Path, quantized: Path) -> Int8Agreement:
    """Return the agreement of both graphs in such a session on this machine."""
    tokenizer, facts = load_tokenizer(source), read_facts(quantized)
    room = facts.max_len - _TOKENS
    prompts = [tokenizer.encode(text)[:room] for text in _PROMPTS]
    settings = OnnxSettings(optimization_level=session.optimization_level)
    plain, small = (
        open_graph(directory, recipe.kind, facts, settings, session.providers, slots=len(prompts))
        for directory in (base, quantized)
    )
    text = _greedy(plain, prompts, None)
    chosen = _greedy(small, prompts, text)
    return Int8Agreement(round((text == chosen).float().mean().item(), 4), text.numel())


def _greedy(graph: SlotGraph, prompts: Sequence[Sequence[int]], text: torch.Tensor | None) -> torch.Tensor:
    """Return greedy tokens `[prompts, _TOKENS]` after the prompts; each follows `text`, if given, or its own tokens."""
    slots = list(range(len(prompts)))
    logits = graph.prefill([PrefillChunk(slot, prompt) for slot, prompt in zip(slots, prompts, strict=True)])
    chosen = [logits.argmax(dim=-1)]
    for step in range(_TOKENS - 1):
        behind = chosen[-1] if text is None else text[:, step]
        chosen.append(graph.decode(slots, behind.tolist()).argmax(dim=-1))
    return torch.stack(chosen, dim=1)


def _work(order: Mapping[str, Any], directory: Path) -> None:
    found = measure(
        source_of(order["source"]),
        Recipe(**order["recipe"]),
        SessionKind(tuple(order["session"]["providers"]), order["session"]["optimization_level"]),
        base=Path(order["base"]),
        quantized=Path(order["quantized"]),
    )
    (directory / AGREEMENT_FILE).write_text(json.dumps(asdict(found)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(obey(sys.argv[1], _work))
