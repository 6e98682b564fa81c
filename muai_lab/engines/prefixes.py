"""Whether the keys and values of a prompt's beginning serve other prompts that begin alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from muai_lab.errors import ModelError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource

# Rotary embeddings whose angles depend on how long the sequence has become: what a short one left behind is not what a
# long one computes. Source: transformers, `modeling_rope_utils.dynamic_rope_update`.
_LENGTH_DEPENDENT = ("dynamic", "longrope")


def prefix_refusal(source: ModelSource) -> str | None:
    """Why they do not, None where they do. Raises ModelError where the model's configuration cannot be read."""
    if source.encoder_decoder:
        return "an encoder reads its prompt whole, so prompts that only begin alike have nothing in common"
    if source.path is None:
        return None
    path = source.path / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}. Copy or download the model again.") from error
    kinds = sorted(set(_rope_types(config)) & set(_LENGTH_DEPENDENT))
    return f"its position embeddings ({kinds[0]}) depend on the length of the sequence" if kinds else None


def _rope_types(config: Mapping[str, object], *, inside: bool = False) -> Iterator[str]:
    """Every type of rotary embedding that a configuration names, also one a kind of layer or of a nested model."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _rope_types(value, inside=inside or key in ("rope_parameters", "rope_scaling"))
        elif inside and key in ("rope_type", "type"):
            yield str(value)
