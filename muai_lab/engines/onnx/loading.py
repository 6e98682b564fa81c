"""From an exported graph on disk to a model over slots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from muai_lab.engines.onnx.child_process import NAME
from muai_lab.engines.onnx.decoder import DecoderGraph
from muai_lab.engines.onnx.decoder_graph import GRAPH_FILE
from muai_lab.engines.onnx.encoder_decoder import EncoderDecoderGraph
from muai_lab.engines.onnx.recipe import GraphFacts
from muai_lab.engines.onnx.session import open_session
from muai_lab.engines.onnx.t5_graph import DECODER_FILE, ENCODER_FILE
from muai_lab.errors import EngineError

if TYPE_CHECKING:
    from muai_lab.settings.schema import OnnxSettings

SlotGraph = DecoderGraph | EncoderDecoderGraph


def choose_dtype(wanted: str, device: torch.device, *, encoder_decoder: bool) -> Literal["fp32", "fp16", "bf16"]:
    """Choose the dtype; `auto`: fp32 on a CPU and for T5, else fp16. Raises EngineError if it is not supported."""
    if encoder_decoder or device.type == "cpu":
        if wanted in ("auto", "fp32"):
            return "fp32"
        why = "T5 graphs are exported in fp32 only" if encoder_decoder else f"ONNX Runtime has no {wanted} on a CPU"
        raise EngineError(NAME, f"{why}: set optimization.onnx.dtype to auto or fp32")
    if wanted == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise EngineError(NAME, "this GPU has no bf16: set optimization.onnx.dtype to auto, fp16 or fp32")
    return "fp16" if wanted == "auto" else wanted  # type: ignore[return-value]


def open_graph(
    directory: Path,
    kind: Literal["decoder", "encoder_decoder"],
    facts: GraphFacts,
    settings: OnnxSettings,
    providers: Sequence[str],
    *,
    slots: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> SlotGraph:
    """Open the graph in `directory` with memory for `slots` sequences. Raises EngineError if it cannot be loaded."""
    device = device or torch.device("cpu")
    if kind == "decoder":
        session = open_session(directory / GRAPH_FILE, settings, providers)
        return DecoderGraph(session, facts, slots=slots, dtype=dtype, device=device)
    encoder, decoder = (open_session(directory / name, settings, providers) for name in (ENCODER_FILE, DECODER_FILE))
    return EncoderDecoderGraph(encoder, decoder, facts, slots=slots, device=device)
