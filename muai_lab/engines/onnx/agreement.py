"""How often an int8 graph chooses the token that the graph it was made from chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from muai_lab.engines.base import PrefillChunk
from muai_lab.engines.onnx.loading import SlotGraph, open_graph
from muai_lab.engines.onnx.recipe import GraphFacts, Recipe
from muai_lab.models.tokenizer import load_tokenizer
from muai_lab.settings.schema import OnnxSettings

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource

_TOKENS = 48  # of each prompt's continuation
_PROMPTS = (
    "The capital of France is",
    "A recipe for bread: mix flour, water, salt and yeast, then",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "In 1905 a clerk at the patent office in Bern wrote four papers. The first of them explains why light",
    "Summarise: the river rose after three days of rain, the bridge was closed, and the school moved its lessons.",
    "Question: how many legs do seven spiders have? Answer:",
)


def with_agreement(
    source: ModelSource, recipe: Recipe, facts: GraphFacts, *, base: Path, quantized: Path
) -> GraphFacts:
    """The facts with the share of positions at which both graphs choose the same token.

    The base graph continues fixed prompts greedily; the int8 graph reads the same text (teacher forcing), so that one
    difference does not count for all that follow. Measured on a CPU.
    """
    tokenizer = load_tokenizer(source)
    room = facts.max_len - _TOKENS
    prompts = [tokenizer.encode(text)[:room] for text in _PROMPTS]
    settings = OnnxSettings(execution_providers=("CPUExecutionProvider",))
    plain, small = (
        open_graph(directory, recipe.kind, facts, settings, ("CPUExecutionProvider",), slots=len(prompts))
        for directory in (base, quantized)
    )
    text = _greedy(plain, prompts, None)
    chosen = _greedy(small, prompts, text)
    return replace(
        facts,
        int8_agreement=round((text == chosen).float().mean().item(), 4),
        int8_positions=text.numel(),
    )


def _greedy(graph: SlotGraph, prompts: Sequence[Sequence[int]], text: torch.Tensor | None) -> torch.Tensor:
    """Greedy tokens `[prompts, _TOKENS]` behind the prompts and, where given, behind `text` instead of their own."""
    slots = list(range(len(prompts)))
    logits = graph.prefill([PrefillChunk(slot, prompt) for slot, prompt in zip(slots, prompts, strict=True)])
    chosen = [logits.argmax(dim=-1)]
    for step in range(_TOKENS - 1):
        behind = chosen[-1] if text is None else text[:, step]
        chosen.append(graph.decode(slots, behind.tolist()).argmax(dim=-1))
    return torch.stack(chosen, dim=1)
