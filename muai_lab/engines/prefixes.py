"""The check if the keys and values of a prompt's beginning can be reused for other prompts that begin alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource

# Rotary embeddings whose angles depend on the length of the sequence: the keys of a short one are not those of a long
# one. Source: transformers, `modeling_rope_utils.dynamic_rope_update`.
_LENGTH_DEPENDENT = ("dynamic", "longrope")


def prefix_refusal(source: ModelSource) -> str | None:
    """Return why prefixes cannot be reused; None if they can. Raises ModelError if config.json cannot be read."""
    if source.encoder_decoder:
        return "an encoder reads its prompt whole, so prompts that only begin alike have nothing in common"
    kinds = sorted(set(_rope_types(source.config())) & set(_LENGTH_DEPENDENT))
    return f"its position embeddings ({kinds[0]}) depend on the length of the sequence" if kinds else None


def _rope_types(config: Mapping[str, object], *, inside: bool = False) -> Iterator[str]:
    """Yield every type of rotary embedding in a configuration, also those of one kind of layer or of a nested model."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _rope_types(value, inside=inside or key in ("rope_parameters", "rope_scaling"))
        elif inside and key in ("rope_type", "type"):
            yield str(value)
