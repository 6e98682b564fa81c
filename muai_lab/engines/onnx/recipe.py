"""The recipe that tells exported graphs of one model apart, and the facts of an exported graph."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Literal

from muai_lab.engines.availability import installed_version

RECIPE_VERSION = 3  # raise it if the export changes; the versions of the exporting libraries are hashed

_EXPORTERS = {
    "decoder": ("onnxruntime-genai", "onnxruntime-genai-cuda", "onnx", "transformers"),
    "encoder_decoder": ("torch", "onnxscript", "onnx", "transformers"),
}

Int8Product = Literal["u8s8", "u8u8"]
"""Unsigned activations times signed, or unsigned, weights."""
Int8 = Int8Product | Literal["weights"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The recipe of an export.

    kind: the exporter. dtype: of weights and of keys and values. target: device that the graph is made for. int8:
    quantised from the graph of the same recipe without int8, for this product of activations and weights (see
    `int8_product`), or `weights` only.
    """

    kind: Literal["decoder", "encoder_decoder"]
    dtype: Literal["fp32", "fp16", "bf16"]
    target: Literal["cpu", "cuda"]
    int8: Int8 | None = None

    def without_int8(self) -> Recipe:
        """Return the recipe of the graph that this one is quantised from."""
        return replace(self, int8=None)

    def hash(self) -> str:
        """Return a short hash over the recipe and the versions of the exporting libraries."""
        return hashlib.sha256(json.dumps(self.described(), sort_keys=True).encode()).hexdigest()[:12]

    def described(self) -> dict[str, object]:
        """Return everything that the hash covers, for readers of the cache."""
        versions = {name: installed_version(name) for name in _EXPORTERS[self.kind]}
        return {"version": RECIPE_VERSION, **asdict(self), "libraries": versions}


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """The facts that an engine needs to run a graph; the export writes them beside it.

    layers, kv_heads, head_dim: of the key/value memory. max_len: most positions. start_token: the first token of a
    decoder that has an encoder.
    """

    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_len: int
    eos_token_ids: tuple[int, ...]
    start_token: int | None = None

    @classmethod
    def of(cls, fields: dict[str, object]) -> GraphFacts:
        """Read from JSON. Raises TypeError if fields are missing or unknown."""
        facts = {**fields, "eos_token_ids": tuple(fields["eos_token_ids"])}  # type: ignore[arg-type]
        return cls(**facts)  # type: ignore[arg-type]
