"""The ONNX Runtime step engine: export (or find) the graph, open it on the first provider that serves."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime

from muai_lab.engines.base import EngineInfo
from muai_lab.engines.onnx.agreement import Int8Agreement, SessionKind, agreement_here
from muai_lab.engines.onnx.child_process import NAME
from muai_lab.engines.onnx.graph_cache import graph_directory, read_facts
from muai_lab.engines.onnx.int8_product import choose_product
from muai_lab.engines.onnx.loading import SlotGraph, choose_dtype, open_graph
from muai_lab.engines.onnx.probe import supports
from muai_lab.engines.onnx.recipe import GraphFacts, Int8, Recipe
from muai_lab.engines.onnx.session import ProviderFailed, Providers, choose_providers, default_threads
from muai_lab.engines.prefixes import prefix_refusal
from muai_lab.engines.pytorch.device import DTYPES
from muai_lab.engines.pytorch.slot_engine import SlotEngine
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OnnxSettings, OptimizationSettings

log = logging.getLogger(__name__)


class OnnxEngine(SlotEngine):
    """Serves a Hugging Face checkpoint with ONNX Runtime: decoders over slots in place, and T5."""

    def __init__(self, source: ModelSource, optimization: OptimizationSettings, *, slots: int) -> None:
        """Load the model; export it first if needed (seconds to minutes, once).

        Raises EngineError if providers, dtype, architecture, weights or the cache do not allow it.
        """
        settings = optimization.onnx
        reason = supports(optimization, source)
        if reason is not None:
            raise EngineError(NAME, reason)
        opened = _open(source, settings, slots)
        recipe, facts, providers = opened.recipe, opened.facts, opened.providers
        details: dict[str, str | int | float | bool | None] = {
            "execution_providers": ", ".join(providers.serving),
            "skipped_providers": _in_words(providers) or None,
            "optimization_level": settings.optimization_level,
            "threads": settings.threads or default_threads(),
            "quantization": _quantization(recipe),
            "graph": opened.directory.name,
        }
        if recipe.int8:
            details["int8_product"] = None if recipe.int8 == "weights" else recipe.int8
            agreement = opened.agreement
            details["int8_greedy_agreement_with_fp32"] = None if agreement is None else agreement.share
            details["int8_agreement_positions"] = None if agreement is None else agreement.positions
        info = EngineInfo(
            name=NAME,
            version=onnxruntime.__version__,
            device=recipe.target,
            dtype=recipe.dtype,
            max_model_len=facts.max_len,
            details=details,
        )
        super().__init__(
            opened.graph,
            info,
            slots=slots,
            eos_token_ids=frozenset(facts.eos_token_ids),
            vocab_size=facts.vocab_size,
            encoder_decoder=source.encoder_decoder,
            prefix_refusal=prefix_refusal(source),
        )


@dataclass(frozen=True, slots=True)
class _Opened:
    graph: SlotGraph
    recipe: Recipe
    facts: GraphFacts
    directory: Path
    providers: Providers
    agreement: Int8Agreement | None  # of int8 on a CPU with fp32, measured on this kind of processor


def _open(source: ModelSource, settings: OnnxSettings, slots: int) -> _Opened:
    """Open the graph on the first provider that serves; log the reasons of the others."""
    providers = choose_providers(settings.execution_providers)
    while providers.serving:
        device = providers.device
        dtype = choose_dtype(settings.dtype, device, encoder_decoder=source.encoder_decoder)
        recipe = Recipe(
            kind="encoder_decoder" if source.encoder_decoder else "decoder",
            dtype=dtype,
            target="cuda" if device.type == "cuda" else "cpu",
            int8=_int8(providers) if settings.enable_quantization else None,
        )
        directory = graph_directory(source, recipe)
        facts = read_facts(directory)
        agreement = None
        if recipe.int8 not in (None, "weights"):
            session = SessionKind(providers.serving, settings.optimization_level)
            agreement = agreement_here(source, recipe, directory, session)
        try:
            graph = open_graph(
                directory,
                recipe.kind,
                facts,
                settings,
                providers.serving,
                slots=slots,
                dtype=DTYPES[dtype],
                device=device,
            )
        except ProviderFailed as error:
            providers = providers.without(str(error), "it does not start: its own libraries are missing or do not fit")
            continue
        if providers.skipped:
            log.warning("ONNX Runtime skips %s", _in_words(providers))
        return _Opened(graph, recipe, facts, directory, providers, agreement)
    raise EngineError(NAME, f"none of optimization.onnx.execution_providers can serve ({_in_words(providers)})")


def _in_words(providers: Providers) -> str:
    return "; ".join(f"{name}: {why}" for name, why in providers.skipped.items())


def _int8(providers: Providers) -> Int8:
    return "weights" if providers.device.type == "cuda" else choose_product(providers.serving)


def _quantization(recipe: Recipe) -> str | None:
    if recipe.int8 is None:
        return None
    return "int8 weights" if recipe.int8 == "weights" else "dynamic int8"
